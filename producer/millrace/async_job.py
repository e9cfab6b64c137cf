"""A handle on one job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from millrace_schemas import (
    ErrorCode,
    ErrorInfo,
    JobCancelled,
    JobError,
    JobExpired,
    JobFailed,
    JobRecord,
    JobState,
    Request,
    Result,
)

from .event_stream import START, EventStream

if TYPE_CHECKING:
    from .async_client import AsyncClient

_ERRORS: Mapping[JobState, type[JobError]] = {
    JobState.FAILED: JobFailed,
    JobState.CANCELLED: JobCancelled,
    JobState.EXPIRED: JobExpired,
}


class AsyncJob:
    """One job of a client, by id. Making one costs nothing and asks nobody."""

    __slots__ = ("_client", "id")

    def __init__(self, client: AsyncClient, job_id: str):
        self._client = client
        self.id = job_id

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r})"

    async def state(self) -> JobState:
        """Raises JobNotFound when there is no such job, or its time to live is over."""
        return await self._client.state(self.id)

    async def record(self) -> JobRecord:
        """State, attempts, times and worker. Raises JobNotFound."""
        return await self._client.record(self.id)

    async def request(self) -> Request:
        """What was submitted, with the seed that was drawn for it. Raises JobNotFound, DecodeError."""
        return await self._client.request(self.id)

    async def result(self, timeout: float | None = None) -> Result:
        """The answer, as soon as there is one; `timeout` in seconds, 0 looks once.

        Raises JobFailed, JobCancelled or JobExpired when the job ended without an answer, ResultTimeout, JobNotFound.
        """
        return await self._client.result(self.id, timeout)

    async def wait(self, timeout: float | None = None) -> Result:
        """As `result`, but hands out whatever the job ended with, errors included."""
        return await self._client.wait(self.id, timeout)

    async def cancel(self) -> JobState:
        """Asks for the job's end; see AsyncClient.cancel."""
        return await self._client.cancel(self.id)

    def events(self, after: str = START) -> EventStream:
        """Started, Tokens ... and Finished of a job with stream=True, from the first one or behind `after`."""
        return self._client.events(self.id, after)


def raise_unless_completed(result: Result) -> Result:
    """`result` of a completed job.

    Raises the JobError of its state otherwise.
    """
    kind = _ERRORS.get(result.state)
    if kind is None:
        return result
    raise kind(result.id, result.error or ErrorInfo(ErrorCode.INTERNAL, f"the job is {result.state}, with no reason"))
