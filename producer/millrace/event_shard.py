"""One connection that waits for the events of many jobs.

A blocking XREAD asks for all of them at once. A reader that joins ends it early by CLIENT UNBLOCK, so that it is asked
for too. A reader that has not taken its last events is left out until it has: it holds up nobody, and costs no more
memory than that. What was read for a reader that does not come back is forgotten after a while.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

from redis.exceptions import NoPermissionError, RedisError

from millrace_schemas import DecodeError, Event, MillraceError, QueueUnavailable, decode
from millrace_schemas.aio import end_tasks

from .connection import TRANSIENT, Connection
from .errors import ClientClosed
from .event_cursor import EventCursor, Events
from .wire import Command, pack

#: Events of one job in one read.
_EVENTS = 64
#: Seconds that a read blocks.
_BLOCK = 5.0
#: The same where CLIENT UNBLOCK is not permitted: a reader that joins then waits as long.
_SHORT_BLOCK = 0.05
#: How much later than asked a blocking read may answer before its connection counts as dead, seconds.
_MARGIN = 5.0
#: Seconds after which a reader that did not come again is forgotten.
_FORGET = 2.0
#: Seconds after which a connection that nobody needs is closed.
_IDLE = 30.0
_RECONNECT_PAUSE = 0.1
#: Seconds until CLIENT UNBLOCK is repeated when it came before the read that it was meant for.
_UNBLOCK_AGAIN = 0.002

_ByKey = dict[bytes, list[EventCursor]]


class EventShard:
    """Reads while there are cursors. `on_leave` is told of each that leaves, `on_end` of its own end."""

    def __init__(
        self,
        connection: Connection,
        *,
        on_leave: Callable[[EventCursor], None],
        on_end: Callable[[EventShard], None],
    ):
        self.cursors: set[EventCursor] = set()
        self._connection = connection
        self._on_leave = on_leave
        self._on_end = on_end
        self._wire = connection.wire()
        self._may_unblock = True
        self._reading = False
        #: Whether somebody joined after the read under way began.
        self._late = False
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._waker: asyncio.Task[None] | None = None

    def add(self, cursor: EventCursor) -> None:
        cursor.shard = self
        self.cursors.add(cursor)
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def remove(self, cursor: EventCursor) -> None:
        self.cursors.discard(cursor)
        self._on_leave(cursor)

    def wake_for(self, cursor: EventCursor) -> None:
        """Lets the next read begin, unless the one under way asks for the cursor's job."""
        if cursor.asked_for:
            return
        self._changed.set()
        if self._reading:
            self._late = True
            if self._waker is None and self._may_unblock:
                self._waker = asyncio.create_task(self._unblock())

    async def close(self) -> None:
        """Whoever waits gets ClientClosed."""
        self._fail(list(self.cursors), ClientClosed("the client was closed while it waited; the job goes on"))
        await end_tasks(*(task for task in (self._task, self._waker) if task is not None))
        await self._wire.close()

    async def _run(self) -> None:
        """Until nobody needs the connection any more, or Redis stays away."""
        try:
            while True:
                try:
                    if not await self._step():
                        return
                except (RedisError, OSError) as e:
                    await self._wire.close()
                    if not isinstance(e, TRANSIENT):
                        raise self._connection.translate(e) from e
                    # Bounded retries, and the clear errors of a first command.
                    await self._connection.call(lambda redis: redis.ping())
                    await asyncio.sleep(_RECONNECT_PAUSE)
        except Exception as e:
            # No reader may hang because this task broke.
            self._fail(list(self.cursors), e)
            if not isinstance(e, MillraceError):
                raise
        finally:
            self._on_end(self)
            self._task = None
            await self._wire.close()

    async def _step(self) -> bool:
        """One read, or a wait for somebody to read for; False when nobody came."""
        if self._may_unblock:
            await self._know_own_id()
        wanted = self._wanted()
        if wanted:
            await self._read(wanted)
            return True
        self._changed.clear()
        try:
            async with asyncio.timeout(_IDLE if not self.cursors else _FORGET):
                await self._changed.wait()
        except TimeoutError:
            return bool(self.cursors)
        return True

    async def _know_own_id(self) -> None:
        try:
            async with asyncio.timeout(_MARGIN):
                await self._wire.own_id()
        except NoPermissionError:
            self._may_unblock = False

    def _wanted(self) -> _ByKey:
        """The cursors to read for, by key. Forgets readers that have gone."""
        wanted: _ByKey = {}
        limit = time.monotonic() - _FORGET
        for cursor in list(self.cursors):
            if not cursor.is_waited_for and cursor.kept_at < limit:
                cursor.leave()
                continue
            cursor.asked_for = cursor.has_room
            if cursor.has_room:
                wanted.setdefault(cursor.key, []).append(cursor)
        return wanted

    async def _read(self, wanted: _ByKey) -> None:
        block = _BLOCK if self._may_unblock else _SHORT_BLOCK
        first = [cursors[0] if len(cursors) == 1 else min(cursors, key=_place) for cursors in wanted.values()]
        self._reading, self._late = True, False
        try:
            async with asyncio.timeout(block + _MARGIN):
                reply = await self._wire.run_packed(_packed_xread(first, block))
        finally:
            self._reading = False
        if isinstance(reply, TRANSIENT):
            raise reply
        if isinstance(reply, Exception):
            await self._blame(wanted, reply)
            return
        for key, entries in reply or ():
            _hand_out(entries, wanted[key])

    async def _blame(self, wanted: _ByKey, error: Exception) -> None:
        """One key at fault (it is no stream) fails a read of all: finds out whose it is."""
        reads = [xread([key], ["0-0"]) for key in wanted]
        replies = await self._connection.try_run(*reads)
        bad = [key for key, reply in zip(wanted, replies, strict=True) if isinstance(reply, Exception)] or list(wanted)
        for key in bad:
            self._fail(wanted[key], self._connection.translate(error))

    async def _unblock(self) -> None:
        """Ends blocking reads until one has begun that nobody came too late for.

        Once is not enough: a command on another connection may come before the read, and its reply after the next.
        """
        try:
            while self._reading and self._late and self._wire.id is not None:
                await self._connection.run(("CLIENT", "UNBLOCK", self._wire.id))
                if self._late:
                    await asyncio.sleep(_UNBLOCK_AGAIN)
        except QueueUnavailable as e:
            # While Redis is away the read ends by itself.
            if isinstance(e.__cause__, NoPermissionError):
                self._may_unblock = False
        except ClientClosed:
            return
        finally:
            self._waker = None

    @staticmethod
    def _fail(cursors: Iterable[EventCursor], error: Exception) -> None:
        for cursor in cursors:
            cursor.fail(error)


def xread(keys: Iterable[bytes], places: Iterable[str], block: float | None = None) -> Command:
    """XREAD behind `places`, waiting `block` seconds."""
    waiting: tuple[str | int, ...] = () if block is None else ("BLOCK", int(block * 1000))
    return ("XREAD", "COUNT", _EVENTS, *waiting, "STREAMS", *keys, *places)


def _packed_xread(cursors: list[EventCursor], block: float) -> bytes:
    """The same, packed: one of many jobs follows on each that found anything, and most of it stays as it was."""
    head = b"".join(map(pack, ("XREAD", "COUNT", str(_EVENTS), "BLOCK", str(int(block * 1000)), "STREAMS")))
    keys, places = zip(*(cursor.packed for cursor in cursors), strict=True)
    return b"*%d\r\n" % (6 + 2 * len(cursors)) + head + b"".join(keys) + b"".join(places)


def events_of(entries: list[Any]) -> Events:
    """Entries as XREAD gives them. Raises DecodeError when the first is none of ours; a later one ends the list."""
    events: Events = []
    for entry, fields in entries:
        try:
            event: Event = decode(dict(zip(fields[::2], fields[1::2], strict=False))[b"e"], Event)  # type: ignore[arg-type]
        except (DecodeError, KeyError) as e:
            if events:
                break
            raise DecodeError(f"the event {entry.decode()} cannot be read: {e}", b"") from e
        events.append((entry.decode(), event))
    return events


def _hand_out(entries: list[Any], cursors: list[EventCursor]) -> None:
    """To each cursor of the job what lies behind its place."""
    try:
        events = events_of(entries)
    except DecodeError as e:
        for cursor in cursors:
            cursor.fail(e)
        return
    if len(cursors) == 1:
        cursors[0].give(events)
        return
    for cursor in cursors:
        place = _place(cursor)
        own = [event for event in events if _order(event[0]) > place]
        if own:
            cursor.give(own)


def _place(cursor: EventCursor) -> tuple[int, int]:
    return _order(cursor.after)


def _order(event_id: str) -> tuple[int, int]:
    first, _, second = event_id.partition("-")
    return int(first), int(second)
