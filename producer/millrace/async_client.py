"""AsyncClient: jobs in, results out, on one event loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec

from millrace_schemas import (
    CacheMode,
    InvalidRequest,
    JobNotFound,
    JobRecord,
    JobState,
    Lane,
    ModelInfo,
    QueueUnavailable,
    Request,
    Result,
    Sampling,
    UnknownModel,
    queue_of_job,
)
from millrace_schemas.job import check_tenant

from .async_job import AsyncJob, raise_unless_completed
from .backend import Backend, QueueView, Refusal
from .config import DEFAULT_REDIS_URL
from .connection import Connection
from .errors import PartlySubmitted, TooManyJobs
from .event_stream import START, EventStream
from .queue_stats import DeadEntry, Failure, QueueStats
from .rates import Meter
from .redis_backend import RedisBackend
from .registry import ModelRegistry
from .submission import Deadline, MessageLike, Submission, build_request, check_against_model, recheck_request
from .tenant_backend import TenantBackend
from .tracing import current_traceparent, submitting

#: Jobs, and bytes, of one round trip of submit_many.
_CHUNK, _CHUNK_BYTES = 256, 4 * 1024 * 1024


class AsyncClient:
    """Submits jobs to the queues in one Redis and hands out their results.

    `model` is the default of `submit`; without any, the one registered model is used. Commands are repeated for
    `retry_for` seconds while Redis is away, then raise QueueUnavailable; every command is idempotent, so a repeat never
    makes a second job. Belongs to the event loop that first uses it. Close it, or use it as a context manager.
    """

    def __init__(
        self,
        url: str = DEFAULT_REDIS_URL,
        model: str | None = None,
        *,
        socket_timeout: float = 5.0,
        retry_for: float = 10.0,
    ):
        connection = Connection(url, socket_timeout=socket_timeout, retry_for=retry_for)
        self._set_up(RedisBackend(connection), model)

    @classmethod
    def _over(cls, backend: Backend, model: str | None) -> Self:
        """A client of something else than Redis."""
        client = cls.__new__(cls)
        client._set_up(backend, model)
        return client

    def _set_up(self, backend: Backend, model: str | None) -> None:
        self.model = model
        self._backend = backend
        self._registry = ModelRegistry(backend)
        #: Of a view: what its jobs get. None: what they bring.
        self._tenant: str | None = None
        self._max_jobs = 0

    @property
    def _connection(self) -> Connection | None:
        """To the Redis of this client, for what else is kept there; None for a view and for a test's fake."""
        return self._backend._connection if isinstance(self._backend, RedisBackend) else None

    def for_tenant(
        self,
        tenant: str,
        *,
        max_jobs: int = 0,
        sees_all: bool = False,
        meter: Meter | None = None,
        results_to: str | None = None,
    ) -> AsyncClient:
        """A view for `tenant` ("": the jobs of no tenant), over the same connections; closing it closes nothing.

        Its jobs are the tenant's, and all others raise JobNotFound as if they were not there, unless it `sees_all`.
        Queues and dead entries raise NotPermitted. `max_jobs` is how many unfinished jobs in a queue the tenant may
        have for a submit to be taken, 0 any number; a list is taken whole or, with TooManyJobs, not at all. Its results
        may go to S3 under the prefix `results_to` only, with "" nowhere but to Redis, and with None anywhere.
        """
        check_tenant(tenant)
        view = AsyncClient._over(
            TenantBackend(self._backend, None if sees_all else tenant, meter, results_to), self.model
        )
        view._registry = self._registry
        view._tenant, view._max_jobs = tenant, max_jobs
        return view

    async def submit(
        self,
        prompt: str | None = None,
        *,
        system: str | None = None,
        messages: Sequence[MessageLike] | None = None,
        prompt_token_ids: Sequence[int] | None = None,
        model: str | None = None,
        sampling: Sampling | Mapping[str, Any] | None = None,
        lane: Lane | str = Lane.INTERACTIVE,
        result_to: str = "redis",
        deadline: Deadline | None = None,
        stream: bool = False,
        metadata: Mapping[str, str] | None = None,
        webhook: str | None = None,
        cache_salt: str | None = None,
        cache: CacheMode = "auto",
        cache_ttl: float | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncJob:
        """Queues one job and returns its handle.

        Give a prompt, a prompt with system, messages or prompt_token_ids. `result_to` is "redis" or
        "s3://bucket/prefix". `deadline` is a datetime with a time zone, a timedelta from now, or Unix seconds; a job
        that has not ended by then expires. With `stream`, tokens can be read from `events()`. `webhook` is a URL that a
        gateway calls when the job has ended. Jobs share cached prefixes with those of their `cache_salt` only, which is
        always one of a tenant's own. `cache="pin"` has all workers keep what the system messages make of the prompt,
        or without any the whole prompt, until `cache_ttl` seconds (60 to 30 days; by default an hour) after its last
        use; whether it is pinned, `record()` says. Submitting again under an `idempotency_key` within a day makes
        nothing and returns the first job, whatever the other arguments say.

        Raises InvalidRequest naming the field, UnknownModel naming the registered ones, TooManyJobs, QueueUnavailable.
        """
        fields = {
            "prompt": prompt, "system": system, "messages": messages, "prompt_token_ids": prompt_token_ids,
            "model": model, "sampling": sampling, "lane": lane, "result_to": result_to, "deadline": deadline,
            "stream": stream, "metadata": metadata, "webhook": webhook, "cache_salt": cache_salt,
            "cache": cache, "cache_ttl": cache_ttl, "idempotency_key": idempotency_key,
        }  # fmt: skip
        with submitting(1):
            submission = await self._prepare(fields)
            (job_id,) = await self._enqueue(await self._backend.admit([submission]))
        return AsyncJob(self, job_id)

    async def submit_many(self, requests: Iterable[Request | Mapping[str, Any]]) -> list[AsyncJob]:
        """Queues many jobs, hundreds a round trip; each is a Request or a mapping of `submit`'s arguments.

        All are checked before any is queued: InvalidRequest and UnknownModel ("requests[17]: ...") mean that none was.
        PartlySubmitted, a QueueUnavailable, says which are queued when Redis went away in between.
        """
        given = list(requests)
        with submitting(len(given)):
            return await self._submit_many(given)

    async def _submit_many(self, requests: Sequence[Request | Mapping[str, Any]]) -> list[AsyncJob]:
        submissions: list[Submission] = []
        for i, request in enumerate(requests):
            try:
                submissions.append(await self._prepare(request))
            except InvalidRequest as e:
                raise InvalidRequest(f"requests[{i}]: {e}", param=e.param, code=e.code) from e
            except UnknownModel as e:
                raise UnknownModel(f"requests[{i}]: {e}") from e
        ids: list[str] = []
        for chunk in _chunks(await self._backend.admit(submissions)):
            try:
                ids += await self._enqueue(chunk)
            except (QueueUnavailable, UnknownModel) as e:
                unsure = [s.id for s in submissions[len(ids) :]]
                raise PartlySubmitted(
                    f"{len(ids)} of {len(submissions)} jobs are queued; the others, from requests[{len(ids)}] on, "
                    f"may not be: {e}",
                    submitted=ids,
                    unsure=unsure,
                ) from e
        return [AsyncJob(self, job_id) for job_id in ids]

    def get(self, job_id: str) -> AsyncJob:
        """The handle of a job by its id; whether there is one, `state()` tells. Raises InvalidRequest on no id."""
        queue_of_job(job_id)
        return AsyncJob(self, job_id)

    async def state(self, job_id: str) -> JobState:
        """Raises JobNotFound."""
        return JobState((await self.record(job_id)).state)

    async def record(self, job_id: str) -> JobRecord:
        """State, attempts, times and worker. Raises JobNotFound."""
        queue_of_job(job_id)
        record = await self._backend.record(job_id)
        if record is None:
            raise JobNotFound(f"there is no job {job_id}, or its time to live is over")
        return record

    async def request(self, job_id: str) -> Request:
        """What was submitted, with the seed that was drawn for it. Raises JobNotFound, DecodeError."""
        queue_of_job(job_id)
        request = await self._backend.request(job_id)
        if request is None:
            raise JobNotFound(f"there is no job {job_id}, or its time to live is over")
        return request

    async def result(self, job_id: str, timeout: float | None = None) -> Result:
        """The answer; see AsyncJob.result."""
        return await self._backend.load(raise_unless_completed(await self._backend.wait(job_id, timeout)))

    async def wait(self, job_id: str, timeout: float | None = None) -> Result:
        """What the job ended with, errors included; see AsyncJob.wait."""
        return await self._backend.load(await self._backend.wait(job_id, timeout))

    async def cancel(self, job_id: str) -> JobState:
        """Asks for the job's end and returns its state.

        `cancelled`: it will never run (again). `in_progress`: its worker was told and ends it at its next step. Another
        terminal state: too late, nothing changed. Raises JobNotFound.
        """
        return await self._backend.cancel(job_id)

    def events(self, job_id: str, after: str = START) -> EventStream:
        """What happens to a job with stream=True; see AsyncJob.events."""
        return EventStream(self._backend, job_id, after)

    async def models(self) -> list[ModelInfo]:
        """Registered models, by name."""
        return await self._registry.all()

    async def queue_stats(self, model: str | None = None) -> QueueStats:
        """Backlog and workers of a model's queue."""
        return await (await self._queue(model)).stats()

    async def failures(self, model: str | None = None, count: int = 100) -> list[Failure]:
        """The newest `count` jobs that failed or expired within a day, and what could not be run; newest first."""
        return await (await self._queue(model)).failures(count)

    async def dead(self, model: str | None = None, count: int = 100) -> list[DeadEntry]:
        """The newest `count` entries of what could not be run, newest first."""
        return await (await self._queue(model)).dead(count)

    async def requeue_dead(self, entry_id: str, model: str | None = None) -> AsyncJob:
        """Submits the request of a dead entry as a new job and deletes the entry; repeating it makes one job."""
        queue = await self._queue(model)
        request = await queue.dead_request(entry_id)
        # A deadline would have passed by now.
        submission = Submission.of(msgspec.structs.replace(request, deadline=None), f"requeue-{entry_id}")
        (job_id,) = await self._enqueue([submission])
        await queue.purge_dead([entry_id])
        return AsyncJob(self, job_id)

    async def purge_dead(self, model: str | None = None, entry_ids: Sequence[str] | None = None) -> int:
        """Deletes these dead entries, or all; returns how many."""
        return await (await self._queue(model)).purge_dead(None if entry_ids is None else list(entry_ids))

    async def aclose(self) -> None:
        """Closes the connections; waits under way raise ClientClosed. The jobs go on."""
        await self._backend.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _queue(self, model: str | None) -> QueueView:
        return self._backend.queue(await self._registry.resolve(model or self.model))

    async def _prepare(self, given: Request | Mapping[str, Any], job_id: str | None = None) -> Submission:
        traceparent = current_traceparent()
        if isinstance(given, Request):
            request, key = recheck_request(given), None
            if self._tenant is not None:
                request = msgspec.structs.replace(request, tenant=self._tenant)
            if request.traceparent is None and traceparent is not None:
                request = msgspec.structs.replace(request, traceparent=traceparent)
        elif isinstance(given, Mapping):
            fields = dict(given)
            key = fields.pop("idempotency_key", None)
            model = fields.pop("model", None)
            if model is None:
                model = self.model
            elif not isinstance(model, str):
                raise InvalidRequest(f"model: expected str, got {type(model).__name__}", param="model")
            now = await self._backend.now()
            request = build_request(
                fields,
                model=await self._registry.resolve(model),
                now=now,
                tenant=self._tenant or "",
                traceparent=traceparent,
            )
        else:
            raise InvalidRequest(f"expected a Request or a mapping of submit's arguments, got {type(given).__name__}")
        info = await self._registry.info(request.model)
        check_against_model(request, info)
        return Submission.of(request, key, self._max_jobs, context=info.max_model_len, job_id=job_id)

    async def _enqueue(self, submissions: Sequence[Submission]) -> list[str]:
        """The ids of the jobs, in order: new ones, or those first made under the same idempotency keys."""
        ids: list[str] = []
        for submission, job_id in zip(submissions, await self._backend.enqueue(submissions), strict=True):
            if job_id is Refusal.TOO_MANY_JOBS:
                raise TooManyJobs(submission.request.tenant, submission.max_unfinished)
            if job_id is Refusal.UNKNOWN_MODEL:
                self._registry.forget(submission.request.model)
                raise await self._registry.unknown(submission.request.model)
            ids.append(job_id)
        return ids


def _chunks(submissions: Sequence[Submission]) -> Iterator[list[Submission]]:
    chunk: list[Submission] = []
    size = 0
    for submission in submissions:
        if chunk and (len(chunk) == _CHUNK or size + len(submission.data) > _CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(submission)
        size += len(submission.data)
    if chunk:
        yield chunk
