"""Reading a job's events while it runs, from any point on."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from redis.exceptions import RedisError

from millrace_schemas import (
    TERMINAL,
    Event,
    Finished,
    InvalidRequest,
    JobNotFound,
    QueueKeys,
    Result,
    decode,
    queue_of_job,
)

from . import s3
from .connection import TRANSIENT, Connection

_BLOCK = 5.0
#: How much later than asked a blocking read may answer before its connection counts as dead.
_MARGIN = 5.0
_COUNT = 64
_RECONNECT_PAUSE = 0.1
START = "0-0"
_EVENT_ID = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII)


class EventStream:
    """Async iterator over Started, Tokens and, last, Finished.

    `last_id` names the newest event that was handed out: `job.events(after=stream.last_id)` goes on behind it, also in
    another process; behind the last event, Finished comes again. Each stream holds a connection of its own while it
    waits. Raises InvalidRequest for a job that was submitted without stream=True, JobNotFound, QueueUnavailable.
    """

    def __init__(self, connection: Connection, job_id: str, after: str = START):
        if not _EVENT_ID.fullmatch(after):
            raise InvalidRequest(f"after is an event's id, as last_id gives it, not {after!r:.80}", param="after")
        self.last_id = after
        self._connection = connection
        self._id = job_id
        self._keys = QueueKeys(queue_of_job(job_id))
        self._buffer: list[tuple[str, Event]] = []
        self._checked = False
        self._ended = False

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        if self._ended:
            raise StopAsyncIteration
        while not self._buffer:
            await self._fill()
        event_id, event = self._buffer.pop(0)
        self.last_id = event_id
        if isinstance(event, Finished):
            self._ended = True
            return Finished(await s3.load(event.result))
        return event

    async def _fill(self) -> None:
        state = await self._check() if not self._checked else None
        entries = await self._read(None if state in TERMINAL else _BLOCK)
        if not entries:
            # Nothing for a while: has it ended in a way that left no event behind, or is `last_id` its last one?
            state = await self._check()
            if state in TERMINAL:
                entries = await self._read(None)
                if not entries:
                    self._buffer.append((self.last_id, Finished(await self._result())))
        self._buffer += [(entry_id.decode(), decode(fields[b"e"], Event)) for entry_id, fields in entries]  # type: ignore[arg-type]

    async def _check(self) -> str:
        """The job's state."""
        key = self._keys.job(self._id)
        state, stream = await self._connection.call(lambda redis: redis.hmget(key, ["state", "stream"]))
        if state is None:
            raise JobNotFound(f"there is no job {self._id}, or its time to live is over")
        if stream != b"1":
            raise InvalidRequest(f"{self._id} publishes no events: submit it with stream=True", param="stream")
        self._checked = True
        return str(state.decode())

    async def _read(self, block: float | None) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """Entries behind `last_id`; waits up to `block` seconds for the first. A lost connection is mended."""
        after: dict[Any, Any] = {self._keys.events(self._id): self.last_id}
        milliseconds = None if block is None else int(block * 1000)
        while True:
            try:
                async with asyncio.timeout((block or 0) + _MARGIN):
                    reply: Any = await self._connection.blocking.xread(after, count=_COUNT, block=milliseconds)
                return list(reply[0][1]) if reply else []
            except (RedisError, OSError) as e:
                # TimeoutError of asyncio is an OSError too.
                if not isinstance(e, TRANSIENT):
                    raise self._connection.translate(e) from e
            await self._connection.call(lambda redis: redis.ping())
            await asyncio.sleep(_RECONNECT_PAUSE)

    async def _result(self) -> Result:
        key = self._keys.result(self._id)
        data = await self._connection.call(lambda redis: redis.get(key))
        if data is None:
            raise JobNotFound(f"{self._id} has ended, but its result's time to live is over")
        return decode(data, Result)
