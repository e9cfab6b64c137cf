"""Reading the events of any number of jobs over few connections.

The place in each stream is its reader's own and is named in every call, so nothing that is kept here can lose or repeat
an event. Between two calls of a reader one round of events is kept for it, so that it need not be asked for anew.
"""

from __future__ import annotations

import time

from millrace_schemas import Finished, QueueKeys, queue_of_job

from .connection import Connection
from .errors import ClientClosed
from .event_cursor import EventCursor, Events
from .event_shard import EventShard, events_of, xread

#: Jobs of one connection: what a read costs the server grows with it.
_SHARD = 128


class EventReader:
    """The events of one client's jobs."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._shards: list[EventShard] = []
        #: Cursors between two calls of their readers, by job and place.
        self._kept: dict[tuple[str, str], EventCursor] = {}
        self._closed = False

    @property
    def connections(self) -> int:
        """How many it holds."""
        return len(self._shards)

    async def read(self, job_id: str, after: str, block: float | None) -> Events:
        """Events behind the id `after`; waits up to `block` seconds for the first, None: not at all.

        Raises QueueUnavailable, DecodeError, ClientClosed.
        """
        if self._closed:
            raise ClientClosed("the client is closed")
        cursor = self._kept.pop((job_id, after), None)
        if block is None:
            # Not from the cursor: the read under way may have been overtaken by what told the caller to look.
            if cursor is not None:
                cursor.leave()
            return await self._look(job_id, after)
        if cursor is None:
            cursor = EventCursor(job_id, after)
            self._shard_with_room().add(cursor)
        try:
            events = await cursor.next(block)
        except BaseException:
            cursor.leave()
            raise
        if events and isinstance(events[-1][1], Finished):
            cursor.leave()
        elif cursor.shard is not None:
            self._keep(cursor)
        return events

    async def close(self) -> None:
        """Reads under way raise ClientClosed."""
        self._closed = True
        for shard in list(self._shards):
            await shard.close()
        self._kept.clear()

    async def _look(self, job_id: str, after: str) -> Events:
        key = QueueKeys(queue_of_job(job_id)).events(job_id).encode()
        (reply,) = await self._connection.run(xread([key], [after]))
        return [event for _, entries in reply or () for event in events_of(entries)]

    def _keep(self, cursor: EventCursor) -> None:
        other = self._kept.get(cursor.place)
        if other is not None:
            other.leave()
        cursor.kept_at = time.monotonic()
        self._kept[cursor.place] = cursor

    def _forget(self, cursor: EventCursor) -> None:
        if self._kept.get(cursor.place) is cursor:
            del self._kept[cursor.place]

    def _shard_with_room(self) -> EventShard:
        for shard in self._shards:
            if len(shard.cursors) < _SHARD:
                return shard
        shard = EventShard(self._connection, on_leave=self._forget, on_end=self._remove)
        self._shards.append(shard)
        return shard

    def _remove(self, shard: EventShard) -> None:
        if shard in self._shards:
            self._shards.remove(shard)
