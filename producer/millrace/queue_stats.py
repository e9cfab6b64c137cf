"""What a queue looks like from outside: its backlog, its workers, and what could not be run."""

from __future__ import annotations

from typing import Any

import msgspec
from redis.asyncio import Redis

from millrace_schemas import GROUP, InvalidRequest, JobNotFound, Lane, QueueKeys, Request, WorkerInfo, decode, queue_of

from .connection import Connection

#: Characters of a failure's reason.
_REASON = 500


class LaneStats(msgspec.Struct, frozen=True, kw_only=True):
    #: Entries that no worker has read; those of cancelled jobs count until a worker passes them.
    waiting: int
    #: Entries that workers hold.
    in_flight: int
    #: Age of the oldest waiting entry, seconds; None when nothing waits.
    oldest_waiting: float | None = None


class QueueStats(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    #: When this was read, Unix seconds of Redis: what the times of workers and entries are to be compared with.
    at: float
    lanes: dict[Lane, LaneStats]
    #: Jobs that wait for a retry's back-off.
    delayed: int
    dead: int
    #: Workers whose heartbeat lives, by name.
    workers: list[WorkerInfo]


class DeadEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the dead stream: what could not be run, and why."""

    id: str
    job: str | None
    lane: str | None
    code: str
    reason: str
    attempts: int
    #: The raw entry or request, where the job itself cannot show it.
    data: bytes = b""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A job that failed or expired, or an entry that could not be run, and why."""

    model: str
    #: When it ended, Unix seconds of Redis.
    at: float
    job: str | None
    lane: str | None
    code: str
    #: At most 500 characters.
    reason: str
    attempts: int


class QueueReader:
    """Reads one model's queue."""

    def __init__(self, connection: Connection, model: str):
        self._connection = connection
        self._model = model
        self._keys = QueueKeys(queue_of(model))

    async def stats(self) -> QueueStats:
        now = await self._connection.now()
        lanes = {lane: await self._lane(key, now) for lane, key in self._keys.lanes.items()}
        delayed = await self._connection.call(lambda redis: redis.zcard(self._keys.delayed))
        dead = await self._connection.call(lambda redis: redis.xlen(self._keys.dead))
        workers = await self.workers()
        return QueueStats(model=self._model, at=now, lanes=lanes, delayed=delayed, dead=dead, workers=workers)

    async def workers(self) -> list[WorkerInfo]:
        """Workers of the queue whose heartbeat has not run out, by name."""
        names = await self._connection.call(lambda redis: redis.zrange(self._keys.workers, 0, -1))
        keys = [self._keys.worker(name.decode()) for name in sorted(names)]
        if not keys:
            return []
        found = await self._connection.call(lambda redis: redis.mget(keys))
        return [decode(data, WorkerInfo) for data in found if data is not None]

    async def dead(self, count: int) -> list[DeadEntry]:
        """The newest `count` entries, newest first."""
        entries = await self._connection.call(lambda redis: redis.xrevrange(self._keys.dead, count=count))
        return [_dead_entry(entry_id, fields) for entry_id, fields in entries]

    async def failures(self, count: int) -> list[Failure]:
        """The newest `count`, newest first: those of the last day, and what is in the dead stream however old it is."""
        entries = await self._connection.call(lambda redis: redis.xrevrange(self._keys.failures, count=count))
        failed = [_dead_entry(entry_id, fields) for entry_id, fields in entries]
        known = {entry.job for entry in failed}
        # Entries of the dead stream hold raw data, which may be long: they are read only where there are any.
        if await self._connection.call(lambda redis: redis.exists(self._keys.dead)):
            failed += [entry for entry in await self.dead(count) if entry.job not in known]
        found = [failure_of(self._model, entry) for entry in failed]
        return sorted(found, key=lambda failure: failure.at, reverse=True)[:count]

    async def dead_request(self, entry_id: str) -> Request:
        """The request of a dead entry's job.

        Raises JobNotFound when there is no such entry or its job's time to live is over.
        """
        check_entry_id(entry_id)
        entries = await self._connection.call(lambda redis: redis.xrange(self._keys.dead, entry_id, entry_id))
        if not entries:
            raise JobNotFound(f"the dead stream of {self._model} has no entry {entry_id}")
        job = _dead_entry(*entries[0]).job
        data = None
        if job is not None:
            key = self._keys.job(job)
            data = await self._connection.call(lambda redis: redis.hget(key, "request"))
        if data is None:
            raise JobNotFound(f"the job of dead entry {entry_id} is gone: its time to live is over")
        return decode(data, Request)

    async def purge_dead(self, entry_ids: list[str] | None) -> int:
        """Deletes these entries, or all; returns how many there were."""
        if entry_ids is None:

            async def delete_all(redis: Redis) -> int:
                async with redis.pipeline(transaction=True) as pipe:
                    pipe.xlen(self._keys.dead)
                    pipe.delete(self._keys.dead)
                    return int((await pipe.execute())[0])

            return int(await self._connection.call(delete_all))
        for entry_id in entry_ids:
            check_entry_id(entry_id)
        if not entry_ids:
            return 0
        return int(await self._connection.call(lambda redis: redis.xdel(self._keys.dead, *entry_ids)))

    async def _lane(self, key: str, now: float) -> LaneStats:
        async def read(redis: Redis) -> tuple[int, list[dict[str, Any]]]:
            async with redis.pipeline(transaction=True) as pipe:
                pipe.xlen(key)
                pipe.exists(key)
                length, exists = await pipe.execute()
            # XINFO of a stream that is not there is an error.
            return length, await redis.xinfo_groups(key) if exists else []

        length, groups = await self._connection.call(read)
        group = next((g for g in groups if g["name"] == GROUP.encode()), None)
        pending = int(group["pending"]) if group else 0
        last = group["last-delivered-id"].decode() if group else "0-0"
        oldest = await self._connection.call(lambda redis: redis.xrange(key, f"({last}", "+", count=1))
        age = max(0.0, now - int(oldest[0][0].split(b"-")[0]) / 1000) if oldest else None
        return LaneStats(waiting=max(0, length - pending), in_flight=pending, oldest_waiting=age)


def check_entry_id(entry_id: str) -> None:
    """Raises InvalidRequest unless the text can be the id of a stream's entry."""
    first, _, second = entry_id.partition("-")
    if not (first.isdecimal() and second.isdecimal()):
        raise InvalidRequest(f"{entry_id[:80]!r} is no dead entry's id (they look like 1700000000000-0)", param="id")


def failure_of(model: str, entry: DeadEntry) -> Failure:
    return Failure(
        model=model,
        at=int(entry.id.partition("-")[0]) / 1000,
        job=entry.job,
        lane=entry.lane,
        code=entry.code,
        reason=entry.reason[:_REASON],
        attempts=entry.attempts,
    )


def _dead_entry(entry_id: bytes, fields: dict[bytes, bytes]) -> DeadEntry:
    text = {name.decode(): value.decode(errors="replace") for name, value in fields.items() if name != b"data"}
    attempts = text.get("attempts", "")
    return DeadEntry(
        id=entry_id.decode(),
        job=text.get("job") or None,
        lane=text.get("lane") or None,
        code=text.get("code", ""),
        reason=text.get("reason", ""),
        attempts=int(attempts) if attempts.isdecimal() else 0,
        data=fields.get(b"data", b""),
    )
