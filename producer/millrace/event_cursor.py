"""One reader's place in one job's events."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from millrace_schemas import Event, QueueKeys, queue_of_job

from .wire import pack

if TYPE_CHECKING:
    from .event_shard import EventShard

Events = list[tuple[str, Event]]


class EventCursor:
    """Holds what was read for its reader and not taken yet: one round of a read at most."""

    __slots__ = ("_error", "_events", "_waiting", "after", "asked_for", "job_id", "kept_at", "key", "packed", "shard")

    def __init__(self, job_id: str, after: str):
        self.job_id = job_id
        self.key = QueueKeys(queue_of_job(job_id)).events(job_id).encode()
        #: Id of the last event that the reader took.
        self.after = after
        #: Key and `after` as they are sent.
        self.packed = pack(self.key), pack(after)
        self.shard: EventShard | None = None
        #: Whether the read under way asks for it.
        self.asked_for = False
        #: Of time.monotonic(); when its reader last went away with what there was.
        self.kept_at = time.monotonic()
        self._events: Events = []
        self._error: Exception | None = None
        self._waiting: asyncio.Future[None] | None = None

    @property
    def place(self) -> tuple[str, str]:
        return self.job_id, self.after

    @property
    def has_room(self) -> bool:
        """Whether what was read last has been taken."""
        return not self._events and self._error is None

    @property
    def is_waited_for(self) -> bool:
        return self._waiting is not None

    async def next(self, block: float) -> Events:
        """What has come; when nothing has, what comes within `block` seconds. Raises what `fail` was given."""
        if self.has_room and self.shard is not None:
            self._waiting = asyncio.get_running_loop().create_future()
            self.shard.wake_for(self)
            try:
                async with asyncio.timeout(block):
                    await self._waiting
            except TimeoutError:
                # The answer is then that nothing came.
                pass
            finally:
                self._waiting = None
        if self._error is not None:
            raise self._error
        events, self._events = self._events, []
        if events:
            self.after = events[-1][0]
            self.packed = self.packed[0], pack(self.after)
        return events

    def give(self, events: Events) -> None:
        self._events = events
        self._tell()

    def fail(self, error: Exception) -> None:
        """Ends a reader's wait; one that is elsewhere will ask again and see for itself."""
        if self.is_waited_for:
            self._error = error
            self._tell()
        self.leave()

    def leave(self) -> None:
        if self.shard is not None:
            self.shard.remove(self)
            self.shard = None

    def _tell(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
