"""The queues of one fake: jobs, models and dead entries, with a clock that a test can move.

Nothing runs in the background. What has become due (an answer, a deadline, a time to live) happens when somebody looks,
with the time at which it was due; whoever waits is woken by changes and looks when the next thing is due.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from millrace.backend import IDEMPOTENCY_TTL, JOB_TTL, Refusal
from millrace.cancellation import RESULT_TTL, cancelled_result
from millrace.errors import TooManyJobs
from millrace.queue_stats import DeadEntry, Failure, failure_of
from millrace.submission import Submission
from millrace_schemas import (
    TERMINAL,
    ErrorCode,
    ErrorInfo,
    IllegalTransition,
    JobNotFound,
    JobState,
    ModelInfo,
    QueueUnavailable,
    queue_of,
)

from .answers import Ending
from .fake_job import FakeJob

#: What a worker leaves in the dead stream besides failing the job.
_DEAD = frozenset({ErrorCode.TOO_MANY_ATTEMPTS, ErrorCode.UNDECODABLE})

_FAILED = frozenset({JobState.FAILED, JobState.EXPIRED})

_Listener = tuple[asyncio.AbstractEventLoop, asyncio.Event]


class MemoryStore:
    """Shared by all clients of a fake, in any threads and loops. `answer` is called with each new job."""

    def __init__(self, models: Iterable[ModelInfo], answer: Callable[[FakeJob], None]):
        self.models = {model.name: model for model in models}
        #: All jobs ever made, in order; those whose time to live is over included.
        self.made: list[FakeJob] = []
        self.dead: dict[str, list[DeadEntry]] = {}
        self._answer = answer
        self._jobs: dict[str, FakeJob] = {}
        self._keys: dict[tuple[str, str, str], tuple[str, float]] = {}
        self._timers: list[tuple[float, int, FakeJob]] = []
        self._numbers = itertools.count(1)
        self._listeners: dict[str, set[_Listener]] = {}
        self._lock = threading.RLock()
        self._ahead = 0.0
        self._down = False
        self.started_at = time.time()

    def now(self) -> float:
        return time.time() + self._ahead

    def advance(self, seconds: float) -> None:
        """Moves the clock forward; what becomes due on the way happens in its order."""
        if seconds < 0:
            raise ValueError(f"time goes forward only, not by {seconds:g} seconds")
        with self._lock:
            self._ahead += seconds
            self._settle()
            self._wake(*self._listeners)

    def set_down(self, down: bool) -> None:
        with self._lock:
            self._down = down
            self._wake(*self._listeners)

    def check_up(self) -> None:
        """Raises QueueUnavailable during an outage."""
        if self._down:
            raise QueueUnavailable("no Redis at memory: the fake plays an outage")

    def check_room(self, submissions: Sequence[Submission]) -> None:
        """As scripts/reserve.lua, without keeping anything. Raises TooManyJobs."""
        with self._lock:
            self._settle()
            wanted = Counter((s.queue, s.request.tenant) for s in submissions if self._needs_room(s))
            for submission in submissions:
                queue, tenant, most = submission.queue, submission.request.tenant, submission.max_unfinished
                if tenant and 0 < most < self._unfinished(queue, tenant) + wanted[queue, tenant]:
                    raise TooManyJobs(tenant, most)

    def enqueue(self, submissions: Sequence[Submission]) -> list[str | Refusal]:
        """As scripts/enqueue.lua, then the answers."""
        ids: list[str | Refusal] = []
        new: list[FakeJob] = []
        with self._lock:
            for submission in submissions:
                ids.append(self._enqueue(submission, new))
            self._settle()
        # Without the lock: a test's function may take its time, and look at the fake.
        for job in new:
            self._answer(job)
        return ids

    def find(self, job_id: str) -> FakeJob | None:
        """The job, with everything that is due done."""
        with self._lock:
            self._settle()
            return self._jobs.get(job_id)

    def list_jobs(self) -> list[FakeJob]:
        with self._lock:
            self._settle()
            return list(self.made)

    def living(self, model: str) -> list[FakeJob]:
        """The model's jobs that have not ended, oldest first."""
        with self._lock:
            self._settle()
            return [j for j in self._jobs.values() if j.request.model == model and j.state not in TERMINAL]

    def failures(self, model: str) -> list[Failure]:
        """Jobs that failed or expired and are still there, and dead entries; newest first."""
        with self._lock:
            self._settle()
            failed = {job.id: job for job in self._jobs.values() if job.state in _FAILED and job.request.model == model}
            found = [job.failure() for job in failed.values()]
            found += [failure_of(model, entry) for entry in self.dead.get(model, ()) if entry.job not in failed]
        return sorted(found, key=lambda failure: failure.at, reverse=True)

    def cancel(self, job_id: str) -> JobState:
        """As scripts/cancel.lua; a running job ends right after the reply."""
        with self._lock:
            job = self._get(job_id)
            if job.state is JobState.QUEUED:
                now, request = self.now(), job.request
                result = cancelled_result(job_id, request.model, request.metadata, job.attempts, now - job.created_at)
                job.cancel_requested = True
                job.finish(result, now)
                self._ended(job)
            elif job.state is JobState.IN_PROGRESS:
                job.cancel_requested = True
                self._at(self.now(), job)
                self._wake(job_id)
            return job.state

    def work(self, job_id: str, do: Callable[[FakeJob, float], None]) -> None:
        """Calls `do(job, now)` as the job's worker, which starts a queued one.

        Raises JobNotFound, and IllegalTransition when the job has ended.
        """
        with self._lock:
            job, now = self._get(job_id), self.now()
            if job.state in TERMINAL:
                raise IllegalTransition(f"{job_id} has ended ({job.state}) and cannot be worked on any more")
            if job.state is JobState.QUEUED:
                job.start(now)
            do(job, now)
            if job.state in TERMINAL:
                self._ended(job)
            elif job.due is not None:
                self._at(job.due[0], job)
            self._wake(job_id)

    def until_due(self) -> float | None:
        """Seconds until the next thing is due; None when nothing will be."""
        with self._lock:
            return max(0.0, self._timers[0][0] - self.now()) if self._timers else None

    def purge_dead(self, queue: str, entry_ids: Sequence[str] | None) -> int:
        with self._lock:
            before = self.dead.get(queue, [])
            kept = [] if entry_ids is None else [entry for entry in before if entry.id not in entry_ids]
            self.dead[queue] = kept
            return len(before) - len(kept)

    @contextmanager
    def listening(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event of the running loop that is set whenever the job changes, by whatever thread."""
        listener = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            self._listeners.setdefault(job_id, set()).add(listener)
        try:
            yield listener[1]
        finally:
            with self._lock:
                self._listeners[job_id].discard(listener)
                if not self._listeners[job_id]:
                    del self._listeners[job_id]

    def _enqueue(self, submission: Submission, new: list[FakeJob]) -> str | Refusal:
        now, key, tenant = self.now(), submission.idempotency_key, submission.request.tenant
        if key is not None:
            first, until = self._keys.get((submission.queue, tenant, key), ("", 0.0))
            if until > now:
                return first
        model = self.models.get(submission.request.model)
        if model is None:
            return Refusal.UNKNOWN_MODEL
        if tenant and 0 < submission.max_unfinished <= self._unfinished(submission.queue, tenant):
            return Refusal.TOO_MANY_JOBS
        job = FakeJob(submission.id, submission.request, key, now, model.vocab_size)
        self._jobs[job.id] = job
        self.made.append(job)
        new.append(job)
        if key is not None:
            self._keys[submission.queue, tenant, key] = job.id, now + IDEMPOTENCY_TTL
        self._at(now + JOB_TTL, job)
        if job.request.deadline is not None:
            self._at(job.request.deadline, job)
        return job.id

    def _needs_room(self, submission: Submission) -> bool:
        key = (submission.queue, submission.request.tenant, submission.idempotency_key or "")
        return self._keys.get(key, ("", 0.0))[1] <= self.now()

    def _unfinished(self, queue: str, tenant: str) -> int:
        living = (job for job in self._jobs.values() if job.state not in TERMINAL)
        return sum(job.request.tenant == tenant and queue_of(job.request.model) == queue for job in living)

    def _get(self, job_id: str) -> FakeJob:
        job = self.find(job_id)
        if job is None:
            raise JobNotFound(f"there is no job {job_id}, or its time to live is over")
        return job

    def _at(self, when: float, job: FakeJob) -> None:
        heapq.heappush(self._timers, (when, next(self._numbers), job))

    def _settle(self) -> None:
        now = self.now()
        while self._timers and self._timers[0][0] <= now:
            when, _, job = heapq.heappop(self._timers)
            self._visit(job, max(when, job.created_at))

    def _visit(self, job: FakeJob, now: float) -> None:
        """Does what is due with a job at `now`."""
        if job.state in TERMINAL:
            if now >= (job.finished_at or now) + RESULT_TTL:
                self._jobs.pop(job.id, None)
            return
        running = job.state is JobState.IN_PROGRESS
        deadline = job.request.deadline
        if running and job.cancel_requested:
            job.end(Ending.failed(ErrorInfo(ErrorCode.CANCELLED, "cancelled while it ran")), now)
        elif deadline is not None and deadline <= now:
            when = "while the job ran" if running else "before a worker could run the job"
            job.end(Ending.failed(ErrorInfo(ErrorCode.DEADLINE_EXCEEDED, f"the deadline passed {when}")), now)
        elif job.due is not None and job.due[0] <= now:
            job.end(job.due[1], now)
        elif now >= job.created_at + JOB_TTL:
            self._jobs.pop(job.id, None)
        if job.state in TERMINAL:
            self._ended(job)
        self._wake(job.id)

    def _ended(self, job: FakeJob) -> None:
        assert job.result is not None
        assert job.finished_at is not None
        self._at(job.finished_at + RESULT_TTL, job)
        error = job.result.error
        if error is not None and error.code in _DEAD:
            entry = DeadEntry(
                id=f"{int(job.finished_at * 1000)}-{next(self._numbers)}",
                job=job.id,
                lane=job.request.lane,
                code=error.code,
                reason=error.message,
                attempts=job.attempts,
            )
            self.dead.setdefault(job.request.model, []).append(entry)
        self._wake(job.id)

    def _wake(self, *job_ids: str) -> None:
        for job_id in job_ids:
            for loop, event in list(self._listeners.get(job_id, ())):
                if not loop.is_closed():
                    loop.call_soon_threadsafe(event.set)
