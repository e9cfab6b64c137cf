"""Takes over entries whose owner's heartbeat stopped, and entries that a draining worker handed over."""

from __future__ import annotations

import random
import time

import redis
import redis.asyncio

from millrace_schemas import GROUP, Lane, QueueKeys

from .consumer import Entries, JobConsumer
from .lease import HANDOVER_LEAST_IDLE, LeaseTable
from .room import Room
from .scripts import CLAIM, Call, run


class Reclaimer:
    """Looks at the pending entries every quarter of a lease, a piece at a time with a kept cursor.

    Idle time is wall-clock time, so after an outage of Redis every running job looks abandoned: for one lease after it
    only handed-over entries are taken, while the owners renew theirs.
    """

    def __init__(
        self, client: redis.asyncio.Redis, keys: QueueKeys, consumer: JobConsumer, leases: LeaseTable, lease: float
    ):
        self._client = client
        self._keys = keys
        self._consumer = consumer
        self._leases = leases
        self._lease = lease
        self._cursors = dict.fromkeys(Lane, "0-0")
        self._next = 0.0
        self._quiet_until = 0.0
        self._handover = True
        self._away = False

    def outage(self) -> None:
        """Redis is away: from its next answer on, other workers' leases are left alone for one lease."""
        self._away = True

    def be_quiet(self, seconds: float) -> None:
        """Leaves other workers' leases alone for so long."""
        self._quiet_until = max(self._quiet_until, time.monotonic() + seconds)

    def hand_over_seen(self) -> None:
        """A worker says that it has handed jobs over: look at once."""
        self._handover = True

    @property
    def due(self) -> bool:
        return self._away or self._handover or time.monotonic() >= self._next

    async def claim(self, room: Room | int) -> int:
        """Takes over and leases as many jobs as there is room for; returns how many.

        Raises redis.RedisError and OSError.
        """
        room = room if isinstance(room, Room) else Room(room)
        if self._away:
            await self._client.ping()
            self._away = False
            self.be_quiet(self._lease)
        now = time.monotonic()
        taken = 0
        if self._handover:
            # Before the look: what is handed over meanwhile may lie behind it.
            self._handover = False
            seen_all = False
            try:
                taken, room = await self._sweep(room, HANDOVER_LEAST_IDLE)
                seen_all = all(room.of(lane) for lane in Lane)
            finally:
                # What had no room is looked for again.
                self._handover = self._handover or not seen_all
        if now >= self._next and now >= self._quiet_until:
            taken += await self._step(room)
        if now >= self._next:
            self._next = now + self._lease / 4 * random.uniform(0.75, 1.25)
        return taken

    async def _sweep(self, room: Room, idle_ms: int) -> tuple[int, Room]:
        """Walks the whole of both lanes' pending entries; how many were taken, and the room that is left."""
        taken = 0
        for lane in Lane:
            cursor = "0-0"
            while count := room.of(lane):
                cursor, found = await self._claim(lane, cursor, idle_ms, count)
                taken += found
                room = room.less(lane, found)
                if cursor == "0-0":
                    break
        return taken, room

    async def _step(self, room: Room) -> int:
        """One piece of each lane, from where the last one ended."""
        taken = 0
        for lane in Lane:
            if count := room.of(lane):
                idle = int(self._lease * 1000)
                self._cursors[lane], found = await self._claim(lane, self._cursors[lane], idle, count)
                taken += found
                room = room.less(lane, found)
        return taken

    async def _claim(self, lane: Lane, cursor: str, idle_ms: int, count: int) -> tuple[str, int]:
        args = (GROUP, self._consumer.name, idle_ms, cursor, count)
        try:
            after, ids = await run(self._client, Call(CLAIM, (self._keys.lanes[lane],), args))
        except redis.ResponseError as e:
            if "NOGROUP" not in str(e):
                raise
            # The next read creates the group again; until then nothing is pending.
            return "0-0", 0
        mine = self._leases.entries()
        # Ours, while our heartbeat was late: the claim renewed it, and it runs already.
        others = tuple(i for i in (entry.decode() for entry in ids) if (lane, i) not in mine)
        return after.decode(), await self._consumer.lease(Entries(lane, others))
