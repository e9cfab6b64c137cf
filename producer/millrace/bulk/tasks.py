"""What RQ runs. Arguments are ids; everything else is what the process that forked this one was configured with."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry as RedisRetry
from rq import Queue, Retry

from millrace.async_client import AsyncClient
from millrace.connection import Connection

from .settings import BulkSettings
from .step import Step
from .sweep import sweep

QUEUE = "millrace-bulk"
#: Of a job whose process died; sooner than the batch's lease ends, nothing would come of it.
_RETRY = (5, 15, 30)
#: What stands for a sweep where others have a batch.
SWEEP = "sweep"
#: Files that one round deletes.
_SWEPT = 100


@dataclass(frozen=True, slots=True)
class Runtime:
    redis_url: str
    settings: BulkSettings = field(default_factory=BulkSettings)


_runtime: list[Runtime] = []


def configure(runtime: Runtime) -> None:
    """Before the fork."""
    _runtime[:] = [runtime]


def queue(connection: redis.Redis) -> Queue:
    return Queue(QUEUE, connection=connection, serializer="json", default_timeout=-1)


def enqueue_step(target: Queue, batch_id: str) -> None:
    # Nothing is read from RQ afterwards: what became of a batch stands in its record.
    target.enqueue(
        step,
        batch_id,
        job_id=f"{batch_id}-{secrets.token_hex(8)}",
        result_ttl=0,
        failure_ttl=3600,
        retry=Retry(max=len(_RETRY), interval=list(_RETRY)),
    )


def enqueue_sweep(target: Queue) -> None:
    target.enqueue(sweep_files, job_id=f"{SWEEP}-{secrets.token_hex(8)}", result_ttl=0, failure_ttl=3600)


def waiting_in(target: Queue) -> set[str]:
    """Batches whose turns wait in the queue, and SWEEP when one of those does."""
    return {job_id.rpartition("-")[0] for job_id in target.get_job_ids()}


def waiting_beside(target: Queue, batch_id: str) -> int:
    """How many turns of other batches wait in the queue; none when Redis is away, as the turn itself will say."""
    try:
        return len(waiting_in(target) - {batch_id})
    except (RedisError, OSError):
        return 0


def step(batch_id: str) -> None:
    """One turn of work on a batch; see step.py."""
    (runtime,) = _runtime
    asyncio.run(_step(batch_id, runtime))


def sweep_files() -> None:
    """Deletes files whose time is over; see sweep.py."""
    (runtime,) = _runtime
    while sweep(runtime.redis_url, _SWEPT) == _SWEPT:
        pass


async def _step(batch_id: str, runtime: Runtime) -> None:
    connection = Connection(runtime.redis_url)
    # The turn's own loop waits for it.
    turns = queue(redis.Redis.from_url(runtime.redis_url, retry=RedisRetry(NoBackoff(), 0), socket_timeout=1))
    try:
        async with AsyncClient(runtime.redis_url) as client:
            await Step(connection, client, runtime.settings, lambda: waiting_beside(turns, batch_id)).run(batch_id)
    finally:
        turns.connection.close()
        await connection.close()
