"""Jobs in Redis: what AsyncClient talks to unless it is told otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from millrace_schemas import (
    MODELS,
    Event,
    JobRecord,
    JobState,
    Lane,
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
from .connection import Connection
from .event_reader import EventReader
from .queue_stats import QueueReader
from .submission import Submission
from .waiter import ResultWaiter

#: The record's fields in the job's hash, in the order in which they are read.
_RECORD_FIELDS = (
    "state", "attempts", "created_at", "started_at", "finished_at", "worker", "cancel_requested", "tenant", "webhook",
    "webhook_state", "webhook_attempts", "webhook_error", "pin", "pin_problem",
)  # fmt: skip
#: Jobs that one call of a script makes: others wait meanwhile, for about a millisecond.
_GROUP = 64
_REFUSALS = {b"unknown_model": Refusal.UNKNOWN_MODEL, b"too_many_jobs": Refusal.TOO_MANY_JOBS}


class RedisBackend:
    """The Backend over one Redis; see backend.py for what its methods do."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._waiter = ResultWaiter(connection)
        self._events = EventReader(connection)

    async def now(self) -> float:
        return await self._connection.now()

    async def model_names(self) -> list[str]:
        now = await self.now()
        (found,) = await self._connection.run(("ZRANGEBYSCORE", MODELS, now, "+inf"))
        return sorted(name.decode() for name in found)

    async def registrations(self, models: Sequence[str]) -> list[ModelInfo | None]:
        keys = [QueueKeys(queue_of(name)).model for name in models]
        found = await self._connection.run(*(("GET", key) for key in keys)) if keys else []
        return [None if data is None else decode(data, ModelInfo) for data in found]

    async def admit(self, submissions: Sequence[Submission]) -> Sequence[Submission]:
        return await admit(self._connection, submissions)

    async def enqueue(self, submissions: Sequence[Submission]) -> list[str | Refusal]:
        queues = {s.queue for s in submissions if s.request.webhook}
        if queues:
            # First, and in a command of its own, as it is another slot: gateways must know where to look.
            await self._connection.run(("SADD", WEBHOOK_QUEUES, *queues))
        size = sum(len(s.data) for s in submissions)
        if len(submissions) > 1 and (alike := _alike(submissions)):
            groups = [submissions[at : at + _GROUP] for at in range(0, len(submissions), _GROUP)]
            calls = [_enqueue_many_call(group, alike) for group in groups]
            replies = await self._connection.script_many("enqueue_many", calls, size=size)
            made = zip(groups, replies, strict=True)
            return [_REFUSALS.get(reply[0]) or s.id for group, reply in made for s in group]
        replies = await self._connection.script_many("enqueue", [_enqueue_call(s) for s in submissions], size=size)
        return [_REFUSALS.get(reply[0]) or reply[1].decode() for reply in replies]

    async def record(self, job_id: str) -> JobRecord | None:
        key = QueueKeys(queue_of_job(job_id)).job(job_id)
        (values,) = await self._connection.run(("HMGET", key, *_RECORD_FIELDS))
        return _record(job_id, values)

    async def request(self, job_id: str) -> Request | None:
        key = QueueKeys(queue_of_job(job_id)).job(job_id)
        (data,) = await self._connection.run(("HGET", key, "request"))
        return None if data is None else decode(data, Request)

    async def wait(self, job_id: str, timeout: float | None) -> Result:
        return await self._waiter.wait(job_id, timeout)

    async def cancel(self, job_id: str) -> JobState:
        return await cancel_job(self._connection, job_id)

    async def streaming_state(self, job_id: str) -> tuple[JobState, bool] | None:
        key = QueueKeys(queue_of_job(job_id)).job(job_id)
        ((state, stream),) = await self._connection.run(("HMGET", key, "state", "stream"))
        return None if state is None else (JobState(state.decode()), stream == b"1")

    async def read_events(self, job_id: str, after: str, block: float | None) -> list[tuple[str, Event]]:
        return await self._events.read(job_id, after, block)

    async def stored_result(self, job_id: str) -> Result | None:
        key = QueueKeys(queue_of_job(job_id)).result(job_id)
        (data,) = await self._connection.run(("GET", key))
        return None if data is None else decode(data, Result)

    async def load(self, result: Result) -> Result:
        return await s3.load(result)

    def queue(self, model: str) -> QueueReader:
        return QueueReader(self._connection, model)

    async def close(self) -> None:
        await self._waiter.close()
        await self._events.close()
        await self._connection.close()


@dataclass(frozen=True, slots=True)
class _Alike:
    """What jobs that are made together have in common."""

    queue: str
    lane: Lane
    stream: bool
    deadline: float | None
    tenant: str


def _alike(submissions: Sequence[Submission]) -> _Alike | None:
    """None when they have too little in common to be made together."""
    found: _Alike | None = None
    for submission in submissions:
        request = submission.request
        if submission.idempotency_key is not None or request.webhook or submission.max_unfinished:
            return None
        alike = _Alike(submission.queue, request.lane, request.stream, request.deadline, request.tenant)
        if found is None:
            found = alike
        elif alike != found:
            return None
    return found


def _enqueue_many_call(submissions: Sequence[Submission], alike: _Alike) -> tuple[list[str], list[Any]]:
    keys = QueueKeys(alike.queue)
    deadline = "" if alike.deadline is None else repr(alike.deadline)
    arguments: list[Any] = [alike.lane, int(alike.stream), deadline, JOB_TTL, alike.tenant]
    for submission in submissions:
        arguments += (submission.id, submission.data)
    shared = [keys.lanes[alike.lane], keys.model, keys.deadlines, keys.unfinished(alike.tenant)]
    return [*shared, *(keys.job(submission.id) for submission in submissions)], arguments


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
    state, attempts, created, started, finished, worker, cancel, tenant, webhook, *told, pin, problem = values
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
        pin=pin.decode() if pin else None,
        pin_problem=problem.decode(errors="replace") if problem else None,
    )


def _webhook(state: bytes | None, attempts: bytes | None, error: bytes | None) -> WebhookRecord:
    return WebhookRecord(
        state=WebhookState(state.decode()) if state else WebhookState.PENDING,
        attempts=int(attempts or 0),
        error=error.decode(errors="replace") if error else None,
    )
