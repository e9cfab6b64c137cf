"""uvicorn's HTTP over httptools, with an end to whatever a client may leave undone.

httptools keeps a head of any length and waits for it for ever, and asyncio keeps what a client does not read. Here
every stage of a connection has a limit of time and bytes, and a sweep once a second ends what is over it.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .connections import Connections
from .errors import ApiError, unavailable

#: Bytes of a request's first line and headers; h11 and nginx have about the same.
MAX_HEAD_BYTES = 64 * 1024
#: Headers that say where a body ends.
_FRAMING = (b"content-length", b"transfer-encoding")
#: How many bytes a chunked body may take for each that it carries, and those that come on top.
_CHUNKED, _SLACK = 8, 1024 * 1024
#: What is sent as a file. It may take longer than other bodies, and has the limits of files.
_UPLOAD = ("POST", "/v1/files")
#: Seconds in which a connection that is closed must have taken what was written to it.
_LINGER = 5.0
#: Seconds in which one that is turned away may read why.
_TURNED_AWAY = 1.0


class Stage(Enum):
    """What a connection is at."""

    #: Nothing has come of a request yet.
    IDLE = 0
    HEAD = 1
    BODY = 2
    #: The request is all there.
    ANSWER = 3
    #: Whatever comes is not looked at.
    OVER = 4


class GatewayProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, shared: Connections, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._shared = shared
        self._settings = shared.settings
        self._stage = Stage.IDLE
        #: Of the loop's clock; None: the stage ends by itself.
        self._deadline: float | None = None
        self._read_bytes = self._head_bytes = 0
        #: Of `_read_bytes`.
        self._most_bytes = 0
        self._stalled_at: float | None = None
        self._closing_at: float | None = None
        #: Whether the request asked for an upgrade; it is the last one then.
        self._declined = False
        #: Requests without a whole answer, those that were sent ahead included, in their order.
        self._cycles: list[RequestResponseCycle] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        admitted = self._shared.admit(self)
        self._deadline = self.loop.time() + self._settings.header_timeout
        if not admitted:
            self.end_with(unavailable(f"{self._shared.limit:,} connections are open here", "too_many_connections"))
            self._deadline = self.loop.time() + _TURNED_AWAY

    def connection_lost(self, exc: Exception | None) -> None:
        self._shared.leave(self)
        # Also after an error: the timer would keep the connection in memory.
        self._unset_keepalive_if_required()
        # uvicorn tells the newest one alone, and it is the first that is being answered.
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._stage is Stage.OVER:
            return
        self._unset_keepalive_if_required()
        if self._stage is Stage.IDLE:
            self._enter_head()
        self._read_bytes += len(data)
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as e:
                self._decline_upgrade(data[e.args[0] :])
        except httptools.HttpParserError:
            if self._declined and self._stage is not Stage.BODY:
                # Behind a request that asked for an upgrade.
                return
            if self._head_bytes > MAX_HEAD_BYTES:
                self.end_with(_head_too_long())
            else:
                self.end_with(ApiError(400, "this is no HTTP request", code="invalid_http"))
        else:
            if self._stage is Stage.HEAD and self._read_bytes > MAX_HEAD_BYTES:
                self.end_with(_head_too_long())
            elif self._stage is Stage.BODY and self._read_bytes > self._most_bytes:
                self.transport.abort()

    def on_message_begin(self) -> None:
        self._enter_head()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Those behind a chunked body come here, too.
        self._count(len(name) + len(value) + 4)
        if self._stage is Stage.HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self._settings.files is not None and (self.scope["method"], self.scope["path"]) == _UPLOAD:
            self._enter_body(self._settings.max_file_bytes, self._settings.upload_timeout)
        else:
            self._enter_body(self._settings.max_body_bytes, self._settings.body_timeout)
        self._cycles.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        if self._stage is Stage.BODY:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            # Of its headers only.
            return
        self._stage, self._deadline = Stage.OVER if self._declined else Stage.ANSWER, None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._stage is Stage.ANSWER:
            self._stage = Stage.IDLE
        elif self._stage is Stage.BODY and self._cycles[0] is self.cycle:
            # Refused before it was all there; nobody reads what is left of it.
            self._enter_body(self._settings.max_body_bytes, self._settings.body_timeout)
        del self._cycles[0]
        super().on_response_complete()

    def pause_writing(self) -> None:
        self._stalled_at = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._stalled_at = None
        super().resume_writing()

    def sweep(self, now: float) -> None:
        """Ends the connection if something about it takes too long; `now` is of the loop's clock."""
        if self.transport.is_closing():
            self._closing_at = self._closing_at or now
            if now - self._closing_at > _LINGER:
                self.transport.abort()
        elif self._stalled_at is not None and now - self._stalled_at > self._settings.write_timeout:
            self.transport.abort()
        elif self._deadline is not None and now > self._deadline:
            if self.flow.read_paused or (self._stage is Stage.HEAD and self._is_answering()):
                # We are the ones who do not read on, or who owe an answer first.
                self._deadline = now + self._settings.header_timeout
            elif self._stage is Stage.HEAD:
                self.end_with(ApiError(408, "the request's headers did not arrive in time", code="request_timeout"))
            else:
                self.transport.abort()

    def end_with(self, error: ApiError) -> None:
        """Answers what is no request, or one that is not taken, and listens no more.

        The connection stays for a moment: closing it on bytes that were not read would take the answer away.
        """
        self._stage, self._deadline = Stage.OVER, self.loop.time() + _TURNED_AWAY
        if self._is_answering():
            # Nobody could tell whose answer that is.
            self.transport.abort()
            return
        self.transport.write(error.raw())
        self.transport.write_eof()

    def _decline_upgrade(self, rest: bytes) -> None:
        """Has the request answered as if it did not ask for another protocol: the JDK's client always does.

        httptools ends such a request with its headers, so a second parser reads the body in `rest` and what follows.
        """
        self._declined, self.cycle.keep_alive = True, False
        self.parser = httptools.HttpRequestParser(_Body(self))
        framing = [b"%b: %b\r\n" % header for header in self.headers if header[0] in _FRAMING]
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
        if self._stage is Stage.BODY:
            self.parser.feed_data(rest)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _enter_head(self) -> None:
        if self._stage is not Stage.HEAD:
            self._stage, self._deadline = Stage.HEAD, self.loop.time() + self._settings.header_timeout
            self._read_bytes = self._head_bytes = 0

    def _enter_body(self, most_bytes: int, timeout: float) -> None:
        """From now on so many bytes may come, in so many seconds; `most_bytes` are those of the body itself."""
        # The application ends a slow body with a 408 first, when it is one that reads it.
        self._stage, self._deadline = Stage.BODY, self.loop.time() + timeout * 1.5
        self._most_bytes = self._read_bytes + most_bytes * _CHUNKED + _SLACK

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise ValueError("too long")


class _Body:
    """What httptools is to call of a connection whose request has its headers."""

    def __init__(self, connection: GatewayProtocol):
        self.on_body = connection.on_body
        self.on_message_complete = connection.on_message_complete


def _head_too_long() -> ApiError:
    return ApiError(
        431, f"the request's headers are longer than {MAX_HEAD_BYTES:,} bytes", code="request_header_fields_too_large"
    )
