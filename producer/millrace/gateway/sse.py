"""Server-sent events: their text, and the response that sends them while it watches for the client's leaving."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from millrace_schemas import MillraceError
from millrace_schemas.aio import end_tasks

from .errors import ApiError, as_api_error, unavailable
from .settings import GatewaySettings

_KEEP_ALIVE = b": keep-alive\n\n"
_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}

#: How an error looks in the middle of a stream.
ErrorEvent = Callable[[ApiError], bytes]


def event(data: Any, *, name: str | None = None, id_: str | None = None) -> bytes:
    """One event; `data` is text, sent as it is (no line breaks), or anything else, sent as JSON."""
    text = data.encode() if isinstance(data, str) else msgspec.json.encode(data)
    head = (f"id: {id_}\n" if id_ is not None else "") + (f"event: {name}\n" if name is not None else "")
    return head.encode() + b"data: " + text + b"\n\n"


def error_event(error: ApiError) -> bytes:
    """OpenAI's way for completions: an event with nothing but the error. Their clients raise it."""
    return event(error.body())


class StreamSlots:
    """Counts the streams of one app, so that none has to wait for a connection to Redis."""

    def __init__(self, limit: int):
        self._limit = limit
        self.used = 0

    def take(self) -> Slot:
        """A place for one more stream. Take it before the job is made: nobody would read that job otherwise.

        Raises ApiError (503) when there is none.
        """
        if self.used >= self._limit:
            raise unavailable(f"{self._limit} streams are open here, and no more are taken", "too_many_streams")
        self.used += 1
        return Slot(self)


class Slot:
    """One stream's place."""

    def __init__(self, slots: StreamSlots):
        self._slots: StreamSlots | None = slots

    def give_back(self) -> None:
        """May be called again."""
        if self._slots is not None:
            self._slots.used -= 1
            self._slots = None


class EventResponse(Response):
    """Sends `events` (made by `event`) until they end or the client leaves.

    Headers go out with the first event or after `keep_alive` seconds: an error before that has its HTTP status, a
    later one is the last event, as `on_error` writes it. `on_leave` runs when the client left before the end; `events`
    is closed in any case. `slot` is from `request.app.state.slots.take()` and is given back here.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        *,
        settings: GatewaySettings,
        slot: Slot,
        headers: Mapping[str, str] | None = None,
        on_leave: Callable[[], Awaitable[object]] | None = None,
        on_error: ErrorEvent = error_event,
    ):
        super().__init__(headers={**_HEADERS, **(headers or {})})
        del self.headers["content-length"]
        self._events = events
        self._keep_alive = settings.keep_alive
        self._slot = slot
        self._on_leave = on_leave
        self._on_error = on_error
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(scope, receive, send))
        leaving = asyncio.create_task(wait_for_leave(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            left = not sending.done()
        finally:
            # Both end here, also when the server itself is stopped; only a client that left cancels anything.
            await end_tasks(sending, leaving)
            self._slot.give_back()
        if left and self._on_leave is not None:
            await self._on_leave()
        if not left:
            sending.result()

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(_with_pauses(self._events, self._keep_alive)) as chunks:
                async for chunk in chunks:
                    await self._write(send, chunk or _KEEP_ALIVE)
        except Exception as e:
            error = as_api_error(e)
            if not self._started:
                await error.response()(scope, receive, send)
            else:
                await self._write(send, self._on_error(error))
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            if not isinstance(e, ApiError | MillraceError):
                raise
            return
        await self._write(send, b"")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send, chunk: bytes) -> None:
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def wait_for_leave(receive: Receive) -> None:
    """Returns when the client has closed its connection; the request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _with_pauses(events: AsyncIterator[bytes], seconds: float) -> AsyncGenerator[bytes]:
    """`events`, with an empty chunk in between whenever there was none for `seconds`."""
    following = asyncio.create_task(_next(events))
    try:
        while True:
            # Not wait_for, which would cancel the read, and with it the generator.
            await asyncio.wait((following,), timeout=seconds)
            if not following.done():
                yield b""
                continue
            chunk = following.result()
            if chunk is None:
                return
            yield chunk
            following = asyncio.create_task(_next(events))
    finally:
        await end_tasks(following)


async def _next(events: AsyncIterator[bytes]) -> bytes | None:
    return await anext(events, None)
