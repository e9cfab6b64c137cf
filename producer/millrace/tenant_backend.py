"""A Backend that shows one tenant's jobs: those of others are, for whoever asks through it, not there."""

from __future__ import annotations

from collections.abc import Sequence

from millrace_schemas import (
    DecodeError,
    Event,
    Finished,
    InvalidRequest,
    JobNotFound,
    JobRecord,
    JobState,
    ModelInfo,
    Request,
    Result,
)

from .backend import Backend, QueueView, Refusal
from .errors import NotPermitted
from .rates import Meter
from .submission import Submission

#: Jobs that are known to be the tenant's, at most.
_KNOWN = 1024


class TenantBackend:
    """`backend`, narrowed to the jobs of `tenant`, or with None to nothing; `meter` counts what is submitted.

    Whose a job is stands in its hash and is read with what is asked for. A wait, a cancellation and a reading of events
    look first, once for a job: the answer never changes. `results_to` is where in S3 its results may go, "" nowhere and
    None anywhere. Closing a view closes nothing.
    """

    def __init__(self, backend: Backend, tenant: str | None, meter: Meter | None = None, results_to: str | None = None):
        self._backend = backend
        self._tenant = tenant
        self._meter = meter
        self._results_to = results_to
        #: As a set that knows its oldest.
        self._own: dict[str, None] = {}

    async def now(self) -> float:
        return await self._backend.now()

    async def model_names(self) -> list[str]:
        return await self._backend.model_names()

    async def registrations(self, models: Sequence[str]) -> list[ModelInfo | None]:
        return await self._backend.registrations(models)

    async def admit(self, submissions: Sequence[Submission]) -> Sequence[Submission]:
        for submission in submissions:
            self._check_result_to(submission.request.result_to)
        if self._meter is not None:
            await self._meter.take(submissions)
        return await self._backend.admit(submissions)

    async def enqueue(self, submissions: Sequence[Submission]) -> list[str | Refusal]:
        ids = await self._backend.enqueue(submissions)
        for submission, job_id in zip(submissions, ids, strict=True):
            if isinstance(job_id, str):
                self._remember(job_id)
                if self._meter is not None:
                    self._meter.made(submission, job_id)
        return ids

    async def record(self, job_id: str) -> JobRecord | None:
        record = await self._backend.record(job_id)
        if record is None or not self._is_own(job_id, record.tenant):
            return None
        return record

    async def request(self, job_id: str) -> Request | None:
        try:
            request = await self._backend.request(job_id)
        except DecodeError:
            # That there is something is for its tenant to know.
            if await self.record(job_id) is None:
                return None
            raise
        if request is None or not self._is_own(job_id, request.tenant):
            return None
        return request

    async def wait(self, job_id: str, timeout: float | None) -> Result:
        await self._check(job_id)
        result = await self._backend.wait(job_id, timeout)
        if self._meter is not None:
            await self._meter.settle(result)
        return result

    async def cancel(self, job_id: str) -> JobState:
        await self._check(job_id)
        return await self._backend.cancel(job_id)

    async def streaming_state(self, job_id: str) -> tuple[JobState, bool] | None:
        await self._check(job_id)
        return await self._backend.streaming_state(job_id)

    async def read_events(self, job_id: str, after: str, block: float | None) -> list[tuple[str, Event]]:
        await self._check(job_id)
        events = await self._backend.read_events(job_id, after, block)
        if self._meter is not None and events and isinstance(events[-1][1], Finished):
            await self._meter.settle(events[-1][1].result)
        return events

    async def stored_result(self, job_id: str) -> Result | None:
        await self._check(job_id)
        return await self._backend.stored_result(job_id)

    async def load(self, result: Result) -> Result:
        """`result` came from here, so it is the tenant's."""
        return await self._backend.load(result)

    def queue(self, model: str) -> QueueView:
        if self._tenant is not None:
            raise NotPermitted("queues, with the jobs of everybody, are for operators; this is the view of a tenant")
        return self._backend.queue(model)

    async def close(self) -> None:
        return

    def _check_result_to(self, target: str) -> None:
        """Raises InvalidRequest on a place that is not the tenant's: workers write with credentials of their own."""
        own = self._results_to
        if own is None or target == "redis" or (own and f"{target}/".startswith(own.rstrip("/") + "/")):
            return
        places = f'"redis" or under {own}' if own else '"redis"'
        raise InvalidRequest(f"result_to may be {places} with this key, not {target[:200]!r}", param="result_to")

    async def _check(self, job_id: str) -> None:
        """Raises JobNotFound unless the tenant has this job."""
        if self._tenant is not None and job_id not in self._own and await self.record(job_id) is None:
            raise JobNotFound(f"there is no job {job_id}, or its time to live is over")

    def _is_own(self, job_id: str, tenant: str) -> bool:
        if self._tenant is not None and tenant != self._tenant:
            return False
        self._remember(job_id)
        return True

    def _remember(self, job_id: str) -> None:
        if len(self._own) >= _KNOWN:
            del self._own[next(iter(self._own))]
        self._own[job_id] = None
