"""Reads the queue's lanes and leases what it read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import redis
import redis.asyncio
import structlog

from millrace_schemas import GROUP, Lane, QueueKeys

from .checkpoint import words_from
from .connection import Backoff
from .lease import HANDED_OVER, HANDOVER_IDLE, LIVE_TTL, Lease, LeasedJob, LeaseTable, Verdict, number
from .room import Room
from .scripts import LEASE, LEAVE, Call, run

log = structlog.get_logger(__name__)

#: Every this many reads the batch lane is asked first, so that interactive jobs never starve it.
BATCH_FIRST_EVERY = 8
#: Most jobs of one read of each lane: while one lot is prepared, Redis leases the next; and what comes of a batch read
#: never keeps an interactive job for long.
MOST_AT_ONCE = {Lane.INTERACTIVE: 64, Lane.BATCH: 32}
#: Most seconds that an idle read blocks, and seconds where only one lane is read: the other may soon have room.
_LONGEST_BLOCK, _ONE_LANE_BLOCK = 2.0, 0.02


def block_for(lease: float) -> float:
    """Seconds that an idle read blocks: a quarter of a lease, so that reclaiming is never late."""
    return min(_LONGEST_BLOCK, lease / 4)


_LANES = (Lane.INTERACTIVE, Lane.BATCH)
_VERDICTS = {verdict.encode(): verdict for verdict in Verdict}


@dataclass(frozen=True, slots=True)
class Entries:
    """Entries of one lane that were delivered to us and are not leased yet."""

    lane: Lane
    ids: tuple[str, ...]


class JobConsumer:
    """One consumer of the queue's group. `name`, unique for each start of a process, is the fence of every lease.

    Each leased job goes to `take` at once: a lease that is held and run by nobody would never end.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        blocking: redis.asyncio.Redis,
        keys: QueueKeys,
        name: str,
        leases: LeaseTable,
        max_attempts: int,
        block: float,
        take: Callable[[LeasedJob], None],
    ):
        self._client = client
        self._blocking = blocking
        self._keys = keys
        self.name = name
        self._leases = leases
        self._max_attempts = max_attempts
        self._block = block
        self._take = take
        self._reads = 0
        self._connection_id: int | None = None
        #: Entries that were no jobs.
        self.malformed = 0
        self._group_backoff = Backoff(0.05, 2.0)

    async def ensure_group(self) -> None:
        """Creates the lanes' groups from their very first entry on; those that exist stay as they are."""
        for lane in _LANES:
            try:
                await self._client.xgroup_create(self._keys.lanes[lane], GROUP, id="0", mkstream=True)
            except redis.ResponseError as e:
                if not str(e).startswith("BUSYGROUP"):
                    raise

    async def next(self, room: Room | int, *, wait: bool) -> int:
        """Leases as many new jobs as there is room for, and returns how many; with `wait` it blocks for the first one.

        At most MOST_AT_ONCE of each lane. It blocks for `block` seconds, less where only one lane has room.
        Raises redis.RedisError and OSError. A group that is gone (FLUSHALL, a failover) is created again, with a pause.
        """
        room = room if isinstance(room, Room) else Room(room)
        self._reads += 1
        order = _LANES if self._reads % BATCH_FIRST_EVERY else _LANES[::-1]
        lanes = tuple(lane for lane in order if room.of(lane))
        try:
            leased = await self._lease_new(lanes, room)
            if not leased and wait and lanes:
                leased = await self._lease_awaited(lanes, room)
        except redis.ResponseError as e:
            if "NOGROUP" not in str(e):
                raise
            log.warning("consumer group is gone; creating it again", queue=self._keys.queue)
            await self._group_backoff.sleep()
            await self.ensure_group()
            return 0
        self._group_backoff.reset()
        return leased

    async def lease(self, entries: Entries) -> int:
        """Leases delivered entries; those whose job is gone or ended are removed, malformed ones quarantined."""
        return await self._lease(entries.lane, 0, entries.ids) if entries.ids else 0

    async def wake(self) -> None:
        """Ends a blocking read early."""
        if self._connection_id is not None:
            await self._client.client_unblock(self._connection_id)

    async def leave(self) -> None:
        """Takes this consumer out of the group; entries delivered to it and never leased go to the other workers."""
        for lane in _LANES:
            args = (GROUP, self.name, HANDED_OVER, HANDOVER_IDLE)
            try:
                while not await run(self._client, Call(LEAVE, (self._keys.lanes[lane],), args)):
                    await asyncio.sleep(0)
            except redis.ResponseError as e:
                if "NOGROUP" not in str(e):
                    raise

    async def _lease_new(self, lanes: Sequence[Lane], room: Room) -> int:
        """Of what is in these lanes now."""
        total = 0
        for lane in lanes:
            if count := _most(room, lane):
                leased = await self._lease(lane, count, ())
                room = room.less(lane, leased)
                total += leased
                if lane is Lane.INTERACTIVE and leased == MOST_AT_ONCE[lane]:
                    # More may wait, which the next read brings before any of the batch lane.
                    break
        return total

    async def _lease_awaited(self, lanes: Sequence[Lane], room: Room) -> int:
        """Of the next that come into these lanes."""
        if len(lanes) == 1:
            found = await self._wait(lanes, _most(room, lanes[0]), min(self._block, _ONE_LANE_BLOCK))
        else:
            # COUNT is for each stream: with room for one job only one lane can be waited on, in turn.
            alone = room.less(lanes[0], 1).of(lanes[1]) == 0
            found = await self._wait(lanes[:1] if alone else lanes, 1, self._block)
        return sum([await self.lease(entries) for entries in found])

    async def _lease(self, lane: Lane, count: int, entries: Sequence[str]) -> int:
        """Leases up to `count` new jobs of the lane, and those of entries that are here; returns how many."""
        keys = self._keys
        args: tuple[str | int, ...] = (GROUP, self.name, keys.prefix, lane, self._max_attempts, LIVE_TTL, count)
        call = Call(LEASE, (keys.lanes[lane], keys.deadlines, keys.dead), (*args, *entries))
        now, *rows = await run(self._client, call)
        leased = 0
        for row in rows:
            if row[1] == b"malformed":
                self.malformed += 1
                log.error("malformed entry moved to the dead stream", entry=_text(row[0]), lane=str(lane))
                continue
            job = _leased(row, lane, float(now))
            self._leases.add(job.lease)
            self._take(job)
            leased += 1
        return leased

    async def _wait(self, lanes: Sequence[Lane], count: int, seconds: float) -> list[Entries]:
        if self._connection_id is None:
            # A client of one connection, so this id is the one that blocks.
            self._connection_id = int(await self._blocking.client_id())
        names = [self._keys.lanes[lane] for lane in lanes]
        wanted = ("COUNT", count, "BLOCK", int(seconds * 1000), "STREAMS", *names, *(">" for _ in names))
        try:
            reply = await self._blocking.execute_command("XREADGROUP", "GROUP", GROUP, self.name, *wanted)
        except (redis.ConnectionError, redis.TimeoutError, OSError):
            self._connection_id = None
            raise
        by_name = dict(zip(names, lanes, strict=True))
        return [Entries(by_name[_text(name)], tuple(_text(e[0]) for e in found)) for name, found in reply or ()]


def _leased(row: Sequence[bytes], lane: Lane, now: float) -> LeasedJob:
    entry, verdict, job_id, attempt, created, started, cancel, stream, request, tokens = row
    return LeasedJob(
        lease=Lease(_text(job_id), lane, _text(entry), int(attempt)),
        verdict=_VERDICTS[verdict],
        request=bytes(request),
        checkpoint=words_from(tokens),
        stream=stream == b"1",
        cancel_requested=cancel == b"1",
        created_at=number(created, now),
        started_at=number(started, now),
        leased_at=now,
    )


def _most(room: Room, lane: Lane) -> int:
    """Jobs that one read of this lane may take."""
    return min(room.of(lane), MOST_AT_ONCE[lane])


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
