"""The webhooks that are due, in Redis. They are written by whatever ends jobs and batches; gateways deliver them.

A batch is in an outbox as a job is: under its id, in the place of queues that has the keys of bulk files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from redis.asyncio import Redis

from millrace.backend import JOB_TTL
from millrace.cancellation import RESULT_TTL
from millrace.connection import Connection
from millrace_schemas import (
    InvalidRequest,
    JobNotFound,
    QueueKeys,
    Request,
    Result,
    WebhookState,
    decode,
    queue_of_job,
)
from millrace_schemas.batch import Batch, is_batch_id
from millrace_schemas.keys import BULK_QUEUE, WEBHOOK_QUEUES, batch_key, webhook_secret

from .signature import new_secret

#: Seconds that an old secret signs, too, beside the one that took its place.
ROTATION = 86_400
#: Due entries that one look passes over, at most, for receivers that are busy; and for how many seconds it then puts
#: them behind all others.
_SCAN, _BEHIND = 1000, 5.0


def outbox_of(ended_id: str) -> str:
    """The queue whose outbox has the end of a job, or what is in its place for a batch. Raises InvalidRequest."""
    return BULK_QUEUE if is_batch_id(ended_id) else queue_of_job(ended_id)


@dataclass(frozen=True, slots=True)
class Claim:
    """A webhook that is ours to deliver until a time that Redis knows."""

    #: Of a job, or of a batch.
    job_id: str
    token: str
    url: str
    tenant: str
    #: This call's number, from 1.
    attempt: int
    #: When the job ended, Unix seconds.
    finished_at: float


@dataclass(frozen=True, slots=True)
class Claims:
    """What one look at a queue's outbox brought."""

    taken: list[Claim]
    #: Entries in all: due, under way and waiting for their next call.
    waiting: int
    #: Some were due, but their receivers are busy.
    passed: bool
    #: Entries that were dropped, as their jobs are no more.
    gone: int
    #: Seconds until the next one is due; None when there is none.
    next_in: float | None


@dataclass(frozen=True, slots=True)
class Terms:
    """What a gateway may take at once."""

    most: int
    #: Calls of one receiver at once.
    per_receiver: int
    #: Seconds for which they are its own.
    lease: float


class PendingWebhook(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the outbox, for people."""

    job: str
    tenant: str
    url: str
    state: str
    attempts: int
    #: When it is called next, or given to another gateway if this one has died; Unix seconds.
    due: float
    error: str | None


class Outbox:
    """Reads and writes the outboxes of all queues in one Redis. Everything may raise QueueUnavailable."""

    def __init__(self, connection: Connection):
        self._connection = connection

    async def queues(self) -> list[str]:
        """Those that ever had a job with a webhook, whether workers serve them now or not."""
        found = await self._connection.call(lambda redis: redis.smembers(WEBHOOK_QUEUES))
        return sorted(name.decode() for name in found)

    async def claim(self, queue: str, terms: Terms, calls: Mapping[str, int]) -> Claims:
        """Takes what is due. `calls` counts those under way by receiver, the part of a URL between `//` and path."""
        keys = QueueKeys(queue)
        busy = [part for receiver, number in calls.items() for part in (receiver, number)]
        waiting, passed, gone, next_in, *taken = await self._connection.script(
            "webhooks_claim",
            [keys.webhooks],
            [keys.prefix, terms.most, terms.lease, terms.per_receiver, _SCAN, _BEHIND, JOB_TTL, *busy],
        )
        return Claims(
            [_claim(*entry) for entry in taken], int(waiting), bool(passed), int(gone),
            float(next_in) if next_in else None,
        )  # fmt: skip

    async def read(self, job_id: str) -> tuple[Request, Result] | None:
        """What a job's event is made of; None when one of them is gone. Raises DecodeError."""
        keys = QueueKeys(queue_of_job(job_id))

        async def do(redis: Redis) -> tuple[bytes | None, bytes | None]:
            async with redis.pipeline(transaction=False) as pipe:
                pipe.hget(keys.job(job_id), "request")
                pipe.get(keys.result(job_id))
                request, result = await pipe.execute()
                return request, result

        request, result = await self._connection.call(do)
        if request is None or result is None:
            return None
        return decode(request, Request), decode(result, Result)

    async def read_batch(self, batch_id: str) -> Batch | None:
        """What a batch's event is made of, also before it has ended; None when it is gone. Raises DecodeError."""
        record = await self._connection.call(lambda redis: redis.hget(batch_key(batch_id), "record"))
        return None if record is None else decode(record, Batch)

    async def settle(self, claim: Claim, state: WebhookState, error: str = "", delay: float = 0.0) -> bool:
        """Writes down how a call ended; `delay` is the time until the next one, seconds.

        `pending` says that there was none. False: the claim had run out, and another gateway sees to it.
        """
        keys = QueueKeys(outbox_of(claim.job_id))
        job = claim.job_id
        reply = await self._connection.script(
            "webhooks_settle",
            [keys.webhooks, keys.job(job), keys.result(job), keys.events(job)],
            [job, claim.token, state, error, delay, RESULT_TTL],
        )
        return bool(reply)

    async def secrets(self, tenant: str, *, rotate: bool = False) -> list[str]:
        """The tenant's secret, made at its first use, and behind it the one before while that one still signs."""
        reply = await self._connection.script(
            "webhook_secret", [webhook_secret(tenant)], [new_secret(), int(rotate), ROTATION]
        )
        return [secret.decode() for secret in reply]

    async def retry(self, job_id: str) -> None:
        """Makes the webhook of a job or batch due now, even one that was delivered or given up.

        Raises JobNotFound, and InvalidRequest when there is nothing to call, or a gateway is just calling.
        """
        keys = QueueKeys(outbox_of(job_id))
        reply = await self._connection.script("webhooks_retry", [keys.webhooks, keys.job(job_id)], [job_id])
        answer = reply.decode()
        if answer == "missing" and is_batch_id(job_id):
            raise JobNotFound(f"{job_id} has no webhook, or has not ended, or its time to live is over")
        if answer == "missing":
            raise JobNotFound(f"there is no job {job_id}, or its time to live is over")
        reasons = {
            "no_webhook": "was submitted without a webhook",
            "not_ended": "has not ended",
            "sending": "is just being told of; look at `millrace webhooks list`",
        }
        if answer in reasons:
            raise InvalidRequest(f"{job_id} {reasons[answer]}", param="id")

    async def pending(self, queue: str, count: int) -> list[PendingWebhook]:
        """The `count` entries that are due first, in that order."""
        keys = QueueKeys(queue)
        fields = ["webhook", "tenant", "webhook_state", "webhook_attempts", "webhook_error"]

        async def do(redis: Redis) -> list[PendingWebhook]:
            entries: list[Any] = await redis.zrange(keys.webhooks, 0, count - 1, withscores=True)
            ids = [job.decode() for job, _ in entries]
            async with redis.pipeline(transaction=False) as pipe:
                for job in ids:
                    pipe.hmget(keys.job(job), fields)
                found = await pipe.execute() if ids else []
            return [_pending(job, score, *h) for job, (_, score), h in zip(ids, entries, found, strict=True)]

        pending: list[PendingWebhook] = await self._connection.call(do)
        return pending


def _claim(job: bytes, token: bytes, url: bytes, tenant: bytes, attempt: bytes, finished_at: bytes) -> Claim:
    return Claim(job.decode(), token.decode(), url.decode(), tenant.decode(), int(attempt), float(finished_at))


def _pending(
    job: str,
    score: float,
    url: bytes | None,
    tenant: bytes | None,
    state: bytes | None,
    attempts: bytes | None,
    error: bytes | None,
) -> PendingWebhook:
    return PendingWebhook(
        job=job,
        tenant=(tenant or b"").decode(),
        url=(url or b"").decode(),
        state=(state or WebhookState.PENDING.encode()).decode(),
        attempts=int(attempts or 0),
        due=score,
        error=error.decode(errors="replace") if error else None,
    )
