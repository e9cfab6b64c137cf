"""Small chores of a queue that any of its workers may do, each safe to do twice."""

from __future__ import annotations

import time
from collections.abc import Sequence

import redis
import redis.asyncio

from millrace_schemas import (
    GROUP,
    DecodeError,
    ErrorCode,
    ErrorInfo,
    InvalidRequest,
    JobState,
    Lane,
    QueueKeys,
    Request,
    Result,
    Timings,
    decode,
)

from .closing import Ending
from .lease import HANDED_OVER, Lease, number
from .publisher import Publisher
from .scripts import LEAVE, PROMOTE, Call, run

_MOST = 100
_CONSUMERS_EVERY = 60.0
#: Notices in the workers' zset older than this, in seconds, belong to workers that died.
_FORGET_WORKERS = 3600.0


class Upkeep:
    """Promotes delayed jobs, expires queued ones and removes consumers of dead workers."""

    def __init__(self, client: redis.asyncio.Redis, keys: QueueKeys, publisher: Publisher, name: str, model: str):
        self._client = client
        self._keys = keys
        self._publisher = publisher
        self._name = name
        self._model = model
        self._consumers_at = 0.0

    async def step(self) -> None:
        """One look at everything. Raises redis.RedisError and OSError."""
        keys = self._keys
        reply = await run(self._client, Call(PROMOTE, (keys.delayed, keys.deadlines), (keys.prefix, _MOST)))
        now = float(reply[0])
        for row in reply[2:]:
            await self._publisher.finish(_expired(row, now, self._model))
        if time.monotonic() >= self._consumers_at:
            self._consumers_at = time.monotonic() + _CONSUMERS_EVERY
            await self._client.zremrangebyscore(keys.workers, "-inf", now - _FORGET_WORKERS)
            await self.remove_dead_consumers()

    async def remove_dead_consumers(self) -> int:
        """Removes consumers that hold nothing and whose worker has no heartbeat; returns how many."""
        removed = 0
        for stream in self._keys.lanes.values():
            try:
                consumers = await self._client.xinfo_consumers(stream, GROUP)
            except redis.ResponseError:
                # No stream or no group yet: nobody to remove.
                continue
            for consumer in consumers:
                name = consumer["name"].decode()
                if name in (self._name, HANDED_OVER) or consumer["pending"]:
                    continue
                if not await self._client.exists(self._keys.worker(name)):
                    removed += int(await run(self._client, Call(LEAVE, (stream,), (GROUP, name, "", 0))))
        return removed


def _expired(row: Sequence[bytes], now: float, model: str) -> Ending:
    job_id, data, _stream, attempts, created, started = row
    request: Request | None = None
    metadata: dict[str, str] = {}
    result_to, lane = "redis", Lane.INTERACTIVE
    try:
        request = decode(bytes(data), Request)
        metadata, result_to, lane = request.metadata, request.result_to, request.lane
    except (DecodeError, InvalidRequest):
        # It ends as expired all the same; nobody will look into a request that nobody ran.
        pass
    submitted = number(created, now)
    tried = int(number(attempts, 0))
    result = Result(
        id=job_id.decode(),
        model=model,
        state=JobState.EXPIRED,
        error=ErrorInfo(ErrorCode.DEADLINE_EXCEEDED, "the deadline passed before a worker could run the job"),
        timings=Timings(queued=number(started, now) - submitted, total=now - submitted),
        attempts=tried,
        metadata=metadata,
    )
    return Ending(Lease(job_id.decode(), lane, "", tried), result, result_to=result_to, owned=False, request=request)
