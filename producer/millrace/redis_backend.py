"""Jobs in Redis: what AsyncClient talks to unless it is told otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from millrace_schemas import (
    MODELS,
    Event,
    JobRecord,
    JobState,
    ModelInfo,
    QueueKeys,
    Request,
    Result,
    WebhookRecord,
    WebhookState,
    decode,
    queue_of,
    queue_of_job,
)
from millrace_schemas.keys import WEBHOOK_QUEUES

from . import s3
from .admission import admit
from .backend import IDEMPOTENCY_TTL, JOB_TTL, Refusal
from .cancellation import cancel_job
from .connection import TRANSIENT, Connection
from .queue_stats import QueueReader
from .submission import Submission
from .waiter import ResultWaiter

#: The record's fields in the job's hash, in the order in which they are read.
_RECORD_FIELDS = (
    "state", "attempts", "created_at", "started_at", "finished_at", "worker", "cancel_requested", "tenant", "webhook",
    "webhook_state", "webhook_attempts", "webhook_error",
)  # fmt: skip
#: How much later than asked a blocking read may answer before its connection counts as dead, seconds.
_MARGIN = 5.0
_EVENTS = 64
_RECONNECT_PAUSE = 0.1
_REFUSALS = {b"unknown_model": Refusal.UNKNOWN_MODEL, b"too_many_jobs": Refusal.TOO_MANY_JOBS}


class RedisBackend:
    """The Backend over one Redis; see backend.py for what its methods do."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._waiter = ResultWaiter(connection)

    async def now(self) -> float:
        return await self._connection.now()

    async def model_names(self) -> list[str]:
        now = await self.now()
        found = await self._connection.call(lambda redis: redis.zrangebyscore(MODELS, now, "+inf"))
        return sorted(name.decode() for name in found)

    async def registrations(self, models: Sequence[str]) -> list[ModelInfo | None]:
        keys = [QueueKeys(queue_of(name)).model for name in models]

        async def read(redis: Redis) -> list[bytes | None]:
            async with redis.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.get(key)
                return list(await pipe.execute())

        found = await self._connection.call(read)
        return [None if data is None else decode(data, ModelInfo) for data in found]

    async def admit(self, submissions: Sequence[Submission]) -> Sequence[Submission]:
        return await admit(self._connection, submissions)

    async def enqueue(self, submissions: Sequence[Submission]) -> list[str | Refusal]:
        queues = {s.queue for s in submissions if s.request.webhook}
        if queues:
            # First, and in a command of its own, as it is another slot: gateways must know where to look.
            await self._connection.call(lambda redis: redis.sadd(WEBHOOK_QUEUES, *queues))
        replies = await self._connection.script_many("enqueue", [_enqueue_call(s) for s in submissions])
        return [_REFUSALS.get(reply[0]) or reply[1].decode() for reply in replies]

    async def record(self, job_id: str) -> JobRecord | None:
        key = QueueKeys(queue_of_job(job_id)).job(job_id)
        return _record(job_id, await self._connection.call(lambda redis: redis.hmget(key, list(_RECORD_FIELDS))))

    async def request(self, job_id: str) -> Request | None:
        key = QueueKeys(queue_of_job(job_id)).job(job_id)
        data = await self._connection.call(lambda redis: redis.hget(key, "request"))
        return None if data is None else decode(data, Request)

    async def wait(self, job_id: str, timeout: float | None) -> Result:
        return await self._waiter.wait(job_id, timeout)

    async def cancel(self, job_id: str) -> JobState:
        return await cancel_job(self._connection, job_id)

    async def streaming_state(self, job_id: str) -> tuple[JobState, bool] | None:
        key = QueueKeys(queue_of_job(job_id)).job(job_id)
        state, stream = await self._connection.call(lambda redis: redis.hmget(key, ["state", "stream"]))
        return None if state is None else (JobState(state.decode()), stream == b"1")

    async def read_events(self, job_id: str, after: str, block: float | None) -> list[tuple[str, Event]]:
        """A connection of its own while it waits; a lost one is mended."""
        streams: dict[Any, Any] = {QueueKeys(queue_of_job(job_id)).events(job_id): after}
        milliseconds = None if block is None else int(block * 1000)
        while True:
            try:
                async with asyncio.timeout((block or 0) + _MARGIN):
                    reply: Any = await self._connection.blocking.xread(streams, count=_EVENTS, block=milliseconds)
                entries = reply[0][1] if reply else []
                return [(entry.decode(), decode(fields[b"e"], Event)) for entry, fields in entries]  # type: ignore[arg-type]
            except (RedisError, OSError) as e:
                # TimeoutError of asyncio is an OSError too.
                if not isinstance(e, TRANSIENT):
                    raise self._connection.translate(e) from e
            await self._connection.call(lambda redis: redis.ping())
            await asyncio.sleep(_RECONNECT_PAUSE)

    async def stored_result(self, job_id: str) -> Result | None:
        key = QueueKeys(queue_of_job(job_id)).result(job_id)
        data = await self._connection.call(lambda redis: redis.get(key))
        return None if data is None else decode(data, Result)

    async def load(self, result: Result) -> Result:
        return await s3.load(result)

    def queue(self, model: str) -> QueueReader:
        return QueueReader(self._connection, model)

    async def close(self) -> None:
        await self._waiter.close()
        await self._connection.close()


def _enqueue_call(submission: Submission) -> tuple[list[str], list[Any]]:
    request, keys = submission.request, QueueKeys(submission.queue)
    job = keys.job(submission.id)
    idem = job if submission.idempotency_key is None else keys.idempotency(submission.idempotency_key, request.tenant)
    idem_ttl = 0 if submission.idempotency_key is None else IDEMPOTENCY_TTL
    deadline = "" if request.deadline is None else repr(request.deadline)
    return (
        [job, keys.lanes[request.lane], idem, keys.model, keys.deadlines, keys.unfinished(request.tenant)],
        [
            submission.id,
            submission.data,
            request.lane,
            int(request.stream),
            deadline,
            JOB_TTL,
            idem_ttl,
            1,
            request.tenant,
            request.webhook or "",
            submission.max_unfinished,
        ],
    )


def _record(job_id: str, values: list[bytes | None]) -> JobRecord | None:
    state, attempts, created, started, finished, worker, cancel, tenant, webhook, *told = values
    if state is None:
        return None
    return JobRecord(
        id=job_id,
        state=JobState(state.decode()),
        attempts=int(attempts or 0),
        created_at=float(created or 0),
        started_at=float(started) if started else None,
        finished_at=float(finished) if finished else None,
        worker=worker.decode() if worker else None,
        cancel_requested=cancel == b"1",
        tenant=tenant.decode() if tenant else "",
        webhook=None if webhook is None else _webhook(*told),
    )


def _webhook(state: bytes | None, attempts: bytes | None, error: bytes | None) -> WebhookRecord:
    return WebhookRecord(
        state=WebhookState(state.decode()) if state else WebhookState.PENDING,
        attempts=int(attempts or 0),
        error=error.decode(errors="replace") if error else None,
    )
