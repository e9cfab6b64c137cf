"""The jobs that run: tokens in, text and results out, each job ended exactly once and by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog

from millrace_schemas import ErrorCode, ErrorInfo, FinishReason
from millrace_worker.errors import EngineDied
from millrace_worker.frames import Likely, Load, Ready, StepOutput
from millrace_worker.stream.closing import DeadLetter, Ending, GiveBack
from millrace_worker.stream.lease import Lease, LeaseTable
from millrace_worker.stream.publisher import Publisher

from .admission import Admission
from .cache_totals import CacheTotals
from .engine_link import EngineLink
from .figures import Figures
from .job import Job
from .outcome import Signature
from .pin_book import PinBook
from .totals import Totals

log = structlog.get_logger(__name__)


class Running:
    """Jobs between their preparation and their end. `room` is set when one leaves or the engine has moved on."""

    def __init__(self, publisher: Publisher, leases: LeaseTable, signature: Signature, max_attempts: int):
        self._publisher = publisher
        self._leases = leases
        self._signature = signature
        self._max_attempts = max_attempts
        self.jobs = Admission(max_attempts)
        self._link: EngineLink | None = None
        self._closed = False
        self._crash_count = 0
        self._ending = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.room = asyncio.Event()
        self.load = Load()
        self.totals = Totals()
        self.figures = Figures()
        self.pins = PinBook()
        self.cache = CacheTotals()
        #: Redis time minus this machine's clock, in seconds.
        self.clock_offset = 0.0

    @property
    def held(self) -> int:
        """Jobs held and not ended, those being written included."""
        return len(self.jobs) + self.jobs.preparing + self._ending

    @property
    def load_now(self) -> Load:
        """The engine's load now: what it said last may be of a step whose sequences have ended since."""
        if self.jobs.engine_busy:
            return self.load
        total = self.load.total_blocks
        return Load(free_blocks=total, total_blocks=total, preemptions=self.load.preemptions)

    @property
    def num_waiting(self) -> int:
        """Jobs held that the engine is not working on: they wait for their prompt's ids, for rows or for blocks."""
        return self.jobs.preparing + self.jobs.num_waiting + self.load_now.waiting

    def now(self) -> float:
        """Redis time."""
        return time.time() + self.clock_offset

    def engine_serves(self, link: EngineLink, ready: Ready) -> None:
        """A fresh engine: every job that is here goes on in it."""
        self._link = link
        self.load = Load(free_blocks=ready.num_blocks, total_blocks=ready.num_blocks)
        self._feed()
        self.pins.engine_serves(link, ready)
        self.room.set()

    def engine_died(self, died: EngineDied) -> None:
        """Notes who was there. A job with no delivery left ends; what it did is then forgiven to the others."""
        self._link = None
        self._crash_count += 1
        self.pins.engine_died()
        self.figures.engine_died()
        self.cache.engine_died()
        suspects = self.jobs.in_engine
        self.jobs.engine_gone()
        for job in suspects:
            job.crashes.add(self._crash_count)
        for job in suspects:
            if job.deliveries <= self._max_attempts:
                continue
            if len(suspects) == 1:
                for other in self.jobs:
                    if other is not job:
                        other.crashes -= job.crashes
            reason = f"{job.deliveries - 1} deliveries, and none ended well; the last time {died}"
            dead = DeadLetter(ErrorCode.TOO_MANY_ATTEMPTS, reason, job.leased.request)
            self._fail(job, ErrorInfo(ErrorCode.TOO_MANY_ATTEMPTS, reason), dead)
        self.jobs.judge()

    def begin(self, job: Job) -> None:
        self.jobs.add(job)
        self._publisher.follow(job.progress)
        if job.progress.stream:
            self._publisher.poke()
        if job.request.deadline is not None:
            delay = max(0.0, job.request.deadline - self.now())
            job.deadline_timer = asyncio.get_running_loop().call_later(delay, self._expire, job)
        self._feed()

    def on_step(self, frame: StepOutput) -> None:
        """A frame from the engine."""
        if self._closed:
            return
        self.load = frame.load
        self.totals.stepped(frame)
        self.figures.stepped(frame)
        if frame.pins is not None:
            self.pins.on_states(frame.pins)
        if frame.cache is not None:
            self.cache.told(frame.cache)
        for started in frame.started:
            if (job := self.jobs.by_sequence(started.seq_id)) is not None:
                job.begin(started)
                self.totals.begun(len(job.prompt), started)
        ended = dict(frame.finished)
        streamed = False
        now = time.monotonic()
        # Most sequences of a step had their last token together, too: one observation for all of those.
        after: dict[float, int] = {}
        for seq_id, ids in frame.tokens:
            job = self.jobs.by_sequence(seq_id)
            if job is not None:
                self.totals.output_tokens += len(ids)
                streamed = streamed or job.progress.stream
                before, job.token_at = job.token_at, now
                self._guarded(job, self._tokens, ids, frame.logprobs.get(seq_id, ()), ended.get(seq_id))
                if before is not None:
                    after[before] = after.get(before, 0) + 1
                elif (seconds := job.first_token_after) is not None:
                    self.figures.first_token[job.lease.lane].observe(seconds)
        self.figures.generated(now, after)
        for seq_id, reason in frame.finished:
            if (job := self.jobs.by_sequence(seq_id)) is not None:
                self.jobs.left_engine(job)
                self._guarded(job, self._finished, reason)
        for refusal in frame.refused:
            if (job := self.jobs.by_sequence(refusal.seq_id)) is not None:
                self.jobs.left_engine(job)
                self._guarded(job, self._refuse, refusal.code, refusal.message)
        if streamed:
            self._publisher.poke()
        self.room.set()

    def lost(self, lease: Lease) -> None:
        """Another worker has the job: it ends there, and nothing of it is written here."""
        job = self.jobs.get(lease.job_id)
        if job is not None and job.lease == lease:
            log.warning("lost the lease of a job; another worker has it", job=job.id, attempt=lease.attempt)
            self.figures.lost += 1
            self._release(job)
            self._publisher.forget(job.progress)
        self._leases.remove(lease)

    def cancel(self, job_id: str) -> None:
        """Ends a job that runs here as cancelled; nothing for any other."""
        job = self.jobs.get(job_id)
        if job is not None:
            self._fail(job, ErrorInfo(ErrorCode.CANCELLED, "cancelled while it ran"))

    async def finish(self, ending: Ending) -> None:
        """Writes an ending; returns when it is in Redis or somebody else's."""
        self._ending += 1
        try:
            await self._write(ending)
        finally:
            self._ending -= 1

    async def hand_over(self) -> int:
        """Checkpoints every job and gives it to other workers; returns how many were given. Nothing runs afterwards."""
        self._closed = True
        backs = []
        for job in self.jobs:
            job.stop_timer()
            self.jobs.remove(job)
            backs.append(GiveBack(job.lease, "handover", job.progress))
        return sum(await asyncio.gather(*(self._publisher.give_back(back) for back in backs)))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` beside the loop."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _feed(self) -> None:
        """Gives the engine what it may have now."""
        if self._link is not None and not self._closed:
            for job, seq_id in self.jobs.admit():
                self._link.add(job.sequence(seq_id))

    def _tokens(self, job: Job, ids: list[int], likely: Sequence[Likely], reason: str | None) -> None:
        if job.take(ids, likely, ended_by_token=reason == FinishReason.STOP):
            if reason is not None:
                self.jobs.left_engine(job)
            self._complete(job, FinishReason.STOP)

    def _finished(self, job: Job, reason: str) -> None:
        self._complete(job, FinishReason(reason))

    def _complete(self, job: Job, reason: FinishReason) -> None:
        self._close(job, self._signature.completed(job, reason, self.now()))

    def _refuse(self, job: Job, code: str, message: str) -> None:
        self._fail(job, ErrorInfo(ErrorCode(code), message))

    def _expire(self, job: Job) -> None:
        if self.jobs.get(job.id) is job:
            self._fail(job, ErrorInfo(ErrorCode.DEADLINE_EXCEEDED, "the deadline passed while the job ran"))

    def _guarded(self, job: Job, act: Callable[..., None], *args: Any) -> None:
        """Errors of one job end that job, not its neighbours."""
        try:
            act(job, *args)
        except Exception as e:
            log.exception("a job failed in the front", job=job.id)
            self._close(job, self._broken(job, e))

    def _fail(self, job: Job, error: ErrorInfo, dead: DeadLetter | None = None) -> None:
        self._close(job, self._signature.failed(job, error, self.now(), dead))

    def _broken(self, job: Job, error: Exception) -> Ending:
        """Ends a job that met an error of our own."""
        words = f"the worker failed on this job's tokens: {type(error).__name__}: {error}"
        return self._signature.refused(job.leased, job.request, ErrorInfo(ErrorCode.INTERNAL, words), self.now())

    def _close(self, job: Job, ending: Ending | Coroutine[Any, Any, Ending]) -> None:
        """Ends the job beside the loop: it is out of the front at once, and held until its end is written."""
        self._release(job)
        self._ending += 1
        self.spawn(self._end(job, ending))

    async def _end(self, job: Job, ending: Ending | Coroutine[Any, Any, Ending]) -> None:
        try:
            if not isinstance(ending, Ending):
                try:
                    ending = await ending
                except Exception as e:
                    log.exception("a result could not be put together", job=job.id)
                    ending = self._broken(job, e)
            await self._write(ending)
        finally:
            self._ending -= 1

    async def _write(self, ending: Ending) -> None:
        try:
            if await self._publisher.finish(ending):
                self.totals.ended(ending.lease.lane, ending.result)
        except Exception:
            # Not renewed any more, so another attempt comes; kept, nobody could ever end it.
            log.exception("an ending could not be written", job=ending.lease.job_id)
            self._leases.remove(ending.lease)
            if ending.progress is not None:
                self._publisher.forget(ending.progress)

    def _release(self, job: Job) -> None:
        """Takes the job out of the front and, where it still runs, out of the engine."""
        job.stop_timer()
        seq_id = self.jobs.remove(job)
        if seq_id is not None and self._link is not None:
            self._link.abort(seq_id)
        self._feed()
        self.room.set()
