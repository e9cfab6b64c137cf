"""Server-sent events: their text, and the response that sends them while it watches for the client's leaving."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from millrace_schemas import MillraceError
from millrace_schemas.aio import end_tasks

from .errors import ApiError, as_api_error, respond, unavailable
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
    """Counts the streams of one app: each costs memory and a share of the loop."""

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
        self._writing = asyncio.Lock()
        self._wrote_at = 0.0

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
        pulse = asyncio.create_task(self._pulse(send))
        failed: Exception | None = None
        try:
            async for chunk in self._events:
                await self._write(send, chunk)
        except Exception as e:
            failed = e
            if not isinstance(e, ApiError | MillraceError):
                raise
        finally:
            await end_tasks(pulse)
            if isinstance(self._events, AsyncGenerator):
                await self._events.aclose()
            if failed is not None:
                await self._tell(failed, scope, receive, send)
        if failed is None:
            await self._write(send, b"")
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _tell(self, failed: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        error = as_api_error(failed)
        if not self._started:
            await respond(error)(scope, receive, send)
            return
        await self._write(send, self._on_error(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pulse(self, send: Send) -> None:
        """Signs of life whenever nothing was sent for `keep_alive`."""
        loop = asyncio.get_running_loop()
        self._wrote_at = loop.time()
        while True:
            left = self._wrote_at + self._keep_alive - loop.time()
            if left > 0:
                await asyncio.sleep(left)
            else:
                await self._write(send, _KEEP_ALIVE)

    async def _write(self, send: Send, chunk: bytes) -> None:
        """Waits while the client does not read. No more events are asked for then, which bounds what is kept for it."""
        async with self._writing:
            if not self._started:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                self._started = True
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            self._wrote_at = asyncio.get_running_loop().time()


async def wait_for_leave(receive: Receive) -> None:
    """Returns when the client has closed its connection; the request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
