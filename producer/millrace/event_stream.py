"""Reading a job's events while it runs, from any point on."""

from __future__ import annotations

import re

from millrace_schemas import (
    TERMINAL,
    Event,
    Finished,
    InvalidRequest,
    JobNotFound,
    JobState,
    Result,
    queue_of_job,
)

from .backend import EventSource

_BLOCK = 5.0
START = "0-0"
#: Two numbers that fit into 64 bits: Redis refuses a read of many jobs over one place that it does not know.
EVENT_ID = re.compile(r"\d{1,19}-\d{1,19}", re.ASCII)


class EventStream:
    """Async iterator over Started, Tokens and, last, Finished.

    `last_id` names the newest event that was handed out: `job.events(after=stream.last_id)` goes on behind it, also in
    another process; behind the last event, Finished comes again. A client's streams share a few connections to Redis.
    Raises InvalidRequest for a job that was submitted without stream=True, JobNotFound, QueueUnavailable.
    """

    def __init__(self, source: EventSource, job_id: str, after: str = START):
        if not EVENT_ID.fullmatch(after):
            raise InvalidRequest(f"after is an event's id, as last_id gives it, not {after!r:.80}", param="after")
        queue_of_job(job_id)
        self.last_id = after
        self._source = source
        self._id = job_id
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
        event_id, event = self._buffer[0]
        if isinstance(event, Finished):
            # Not taken before it is there: a caller that is cancelled meanwhile, or told of a failure, may ask again.
            event = Finished(await self._source.load(event.result))
            self._ended = True
        del self._buffer[0]
        self.last_id = event_id
        return event

    async def _fill(self) -> None:
        state = await self._check() if not self._checked else None
        events = await self._read(None if state in TERMINAL else _BLOCK)
        if not events:
            # Nothing for a while: has it ended in a way that left no event behind, or is `last_id` its last one?
            state = await self._check()
            if state in TERMINAL:
                events = await self._read(None)
                if not events:
                    self._buffer.append((self.last_id, Finished(await self._result())))
        self._buffer += events

    async def _check(self) -> JobState:
        """The job's state."""
        found = await self._source.streaming_state(self._id)
        if found is None:
            raise JobNotFound(f"there is no job {self._id}, or its time to live is over")
        state, streams = found
        if not streams:
            raise InvalidRequest(f"{self._id} publishes no events: submit it with stream=True", param="stream")
        self._checked = True
        return state

    async def _read(self, block: float | None) -> list[tuple[str, Event]]:
        return await self._source.read_events(self._id, self.last_id, block)

    async def _result(self) -> Result:
        result = await self._source.stored_result(self._id)
        if result is None:
            raise JobNotFound(f"{self._id} has ended, but its result's time to live is over")
        return result
