"""The Backend over a MemoryStore: what a client of a fake talks to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from millrace import ClientClosed, DeadEntry, Failure, LaneStats, QueueStats
from millrace.backend import Refusal
from millrace.queue_stats import check_entry_id
from millrace.submission import Submission
from millrace.waiter import judge, timed_out
from millrace_schemas import (
    Event,
    JobNotFound,
    JobRecord,
    JobState,
    Lane,
    ModelInfo,
    Request,
    Result,
    WorkerInfo,
    queue_of,
    queue_of_job,
)

from .fake_job import WORKER, FakeJob
from .memory_store import MemoryStore

R = TypeVar("R")


class MemoryBackend:
    """One client's access to the store; see millrace/backend.py for what its methods do."""

    def __init__(self, store: MemoryStore):
        self._store = store
        self._waiting: set[asyncio.Event] = set()
        self._closed = False

    async def now(self) -> float:
        self._store.check_up()
        return self._store.now()

    async def model_names(self) -> list[str]:
        self._store.check_up()
        return sorted(self._store.models)

    async def registrations(self, models: Sequence[str]) -> list[ModelInfo | None]:
        self._store.check_up()
        for model in models:
            queue_of(model)
        return [self._store.models.get(model) for model in models]

    async def admit(self, submissions: Sequence[Submission]) -> Sequence[Submission]:
        self._store.check_up()
        self._store.check_room(submissions)
        return submissions

    async def enqueue(self, submissions: Sequence[Submission]) -> list[str | Refusal]:
        self._store.check_up()
        return self._store.enqueue(submissions)

    async def record(self, job_id: str) -> JobRecord | None:
        job = self._find(job_id)
        return None if job is None else job.record

    async def request(self, job_id: str) -> Request | None:
        job = self._find(job_id)
        return None if job is None else job.request

    async def wait(self, job_id: str, timeout: float | None) -> Result:
        queue_of_job(job_id)

        def look() -> Result | None:
            job = self._find(job_id)
            found = judge(job_id, *((None, None) if job is None else (job.state, job.result)))
            if isinstance(found, JobNotFound):
                raise found
            return found

        result = await self._watch(job_id, timeout, look)
        if result is None:
            raise timed_out(job_id, timeout)
        return result

    async def cancel(self, job_id: str) -> JobState:
        queue_of_job(job_id)
        self._store.check_up()
        return self._store.cancel(job_id)

    async def streaming_state(self, job_id: str) -> tuple[JobState, bool] | None:
        job = self._find(job_id)
        return None if job is None else (job.state, job.request.stream)

    async def read_events(self, job_id: str, after: str, block: float | None) -> list[tuple[str, Event]]:
        start = _order(after)

        def look() -> list[tuple[str, Event]] | None:
            job = self._find(job_id)
            return [e for e in job.events if _order(e[0]) > start] or None if job is not None else None

        return await self._watch(job_id, block or 0, look) or []

    async def stored_result(self, job_id: str) -> Result | None:
        job = self._find(job_id)
        return None if job is None else job.result

    async def load(self, result: Result) -> Result:
        """A location is only a name here: the whole result is at hand."""
        return result

    def queue(self, model: str) -> MemoryQueue:
        queue_of(model)
        return MemoryQueue(self._store, model)

    async def close(self) -> None:
        self._closed = True
        for event in self._waiting:
            event.set()

    def _find(self, job_id: str) -> FakeJob | None:
        self._store.check_up()
        return self._store.find(job_id)

    async def _watch(self, job_id: str, timeout: float | None, look: Callable[[], R | None]) -> R | None:
        """What `look` finds as soon as it finds something; None after `timeout` seconds."""
        if timeout is not None and timeout <= 0:
            return look()
        if self._closed:
            raise ClientClosed("the client is closed")
        limit = None if timeout is None else time.monotonic() + timeout
        with self._store.listening(job_id) as changed:
            self._waiting.add(changed)
            try:
                while True:
                    changed.clear()
                    found = look()
                    left = None if limit is None else limit - time.monotonic()
                    if found is not None or (left is not None and left <= 0):
                        return found
                    await _wait_for(changed, left, self._store.until_due())
                    if self._closed:
                        raise ClientClosed("the client was closed while it waited; the job goes on")
            finally:
                self._waiting.discard(changed)


class MemoryQueue:
    """One model's queue."""

    def __init__(self, store: MemoryStore, model: str):
        self._store = store
        self._model = model

    async def stats(self) -> QueueStats:
        self._store.check_up()
        jobs = self._store.living(self._model)
        return QueueStats(
            model=self._model,
            at=self._store.now(),
            lanes={lane: self._lane([job for job in jobs if job.request.lane is lane]) for lane in Lane},
            delayed=0,
            dead=len(self._dead()),
            workers=self._workers(jobs),
        )

    async def failures(self, count: int) -> list[Failure]:
        self._store.check_up()
        return self._store.failures(self._model)[:count]

    async def dead(self, count: int) -> list[DeadEntry]:
        self._store.check_up()
        return self._dead()[::-1][:count]

    async def dead_request(self, entry_id: str) -> Request:
        self._store.check_up()
        check_entry_id(entry_id)
        entry = next((entry for entry in self._dead() if entry.id == entry_id), None)
        if entry is None:
            raise JobNotFound(f"the dead stream of {self._model} has no entry {entry_id}")
        job = self._store.find(entry.job or "")
        if job is None:
            raise JobNotFound(f"the job of dead entry {entry_id} is gone: its time to live is over")
        return job.request

    async def purge_dead(self, entry_ids: list[str] | None) -> int:
        self._store.check_up()
        for entry_id in entry_ids or ():
            check_entry_id(entry_id)
        return self._store.purge_dead(self._model, entry_ids)

    def _dead(self) -> list[DeadEntry]:
        return self._store.dead.get(self._model, [])

    def _lane(self, jobs: list[FakeJob]) -> LaneStats:
        waiting = [job for job in jobs if job.state is JobState.QUEUED]
        oldest = self._store.now() - waiting[0].created_at if waiting else None
        return LaneStats(waiting=len(waiting), in_flight=len(jobs) - len(waiting), oldest_waiting=oldest)

    def _workers(self, jobs: list[FakeJob]) -> list[WorkerInfo]:
        """The one that the fake plays, while it serves the model."""
        if self._model not in self._store.models:
            return []
        ended = [job for job in self._store.list_jobs() if job.request.model == self._model and job.result is not None]
        worker = WorkerInfo(
            name=WORKER,
            model=self._model,
            host="memory",
            pid=0,
            device="none",
            started_at=self._store.started_at,
            beat_at=self._store.now(),
            leased=sum(job.state is JobState.IN_PROGRESS for job in jobs),
            finished=sum(job.attempts > 0 for job in ended),
            output_tokens=sum(len(job.token_ids) for job in ended),
        )
        return [worker]


async def _wait_for(changed: asyncio.Event, *seconds: float | None) -> None:
    """Returns once `changed` is set, or after the least of `seconds`."""
    given = [s for s in seconds if s is not None]
    try:
        async with asyncio.timeout(min(given) if given else None):
            await changed.wait()
    except TimeoutError:
        # The caller looks again, which is what it came for.
        return


def _order(event_id: str) -> tuple[int, int]:
    first, _, second = event_id.partition("-")
    return int(first), int(second)
