"""The seam under AsyncClient: what differs between jobs in Redis and jobs in the memory of a test.

Above it lie all checks, conversions, defaults and handles, which are the same for both. RedisBackend is the real one;
millrace.testing has the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Protocol

from millrace_schemas import Event, JobRecord, JobState, ModelInfo, Request, Result

from .queue_stats import DeadEntry, Failure, QueueStats
from .submission import Submission

#: Seconds that the record of a job without an end is kept.
JOB_TTL = 7 * 86_400
#: Seconds in which an idempotency key names its job.
IDEMPOTENCY_TTL = 86_400


class Refusal(Enum):
    """Why no job was made."""

    UNKNOWN_MODEL = auto()
    TOO_MANY_JOBS = auto()


class ModelSource(Protocol):
    """Which models workers have registered."""

    async def model_names(self) -> list[str]:
        """Names whose registration lives, sorted."""
        ...

    async def registrations(self, models: Sequence[str]) -> list[ModelInfo | None]:
        """For each name its registration, None where there is none."""
        ...


class EventSource(Protocol):
    """The events and the end of single jobs."""

    async def streaming_state(self, job_id: str) -> tuple[JobState, bool] | None:
        """The job's state and whether it publishes events; None when there is no such job."""
        ...

    async def read_events(self, job_id: str, after: str, block: float | None) -> list[tuple[str, Event]]:
        """Events behind the id `after`, with their ids; waits up to `block` seconds for the first."""
        ...

    async def stored_result(self, job_id: str) -> Result | None:
        """The job's result as stored; None when there is none."""
        ...

    async def load(self, result: Result) -> Result:
        """`result` itself, or the whole one from its `location`. Raises ResultUnavailable."""
        ...


class QueueView(Protocol):
    """One model's queue, as `AsyncClient` shows it."""

    async def stats(self) -> QueueStats: ...

    async def failures(self, count: int) -> list[Failure]:
        """The newest `count`, newest first."""
        ...

    async def dead(self, count: int) -> list[DeadEntry]:
        """The newest `count` entries, newest first."""
        ...

    async def dead_request(self, entry_id: str) -> Request:
        """The request of a dead entry's job. Raises InvalidRequest, JobNotFound."""
        ...

    async def purge_dead(self, entry_ids: list[str] | None) -> int:
        """Deletes these entries, or all; returns how many there were."""
        ...


class Backend(ModelSource, EventSource, Protocol):
    """One client's access to the queues. Everything asynchronous may raise QueueUnavailable."""

    async def now(self) -> float:
        """The time that deadlines are measured with, Unix seconds."""
        ...

    async def admit(self, submissions: Sequence[Submission]) -> Sequence[Submission]:
        """Called once with all jobs that one caller submits together, before they are written: as they are to be.

        Raises TooManyJobs when there is no room for all of several, RateLimited.
        """
        ...

    async def enqueue(self, submissions: Sequence[Submission]) -> list[str | Refusal]:
        """The ids of the jobs, in order: new ones, or those first made under the same keys."""
        ...

    async def record(self, job_id: str) -> JobRecord | None:
        """None when there is no such job."""
        ...

    async def request(self, job_id: str) -> Request | None:
        """What was submitted; None when there is no such job. Raises DecodeError."""
        ...

    async def wait(self, job_id: str, timeout: float | None) -> Result:
        """The terminal result, as stored. Raises ResultTimeout, JobNotFound, DecodeError, ClientClosed."""
        ...

    async def cancel(self, job_id: str) -> JobState:
        """See AsyncClient.cancel. Raises JobNotFound."""
        ...

    def queue(self, model: str) -> QueueView: ...

    async def close(self) -> None:
        """Waits under way raise ClientClosed."""
        ...
