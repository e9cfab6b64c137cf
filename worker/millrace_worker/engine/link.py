"""The engine's end of the socketpair: blocking writes, reads that wait only when there is nothing to compute."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

from millrace_worker.frame_buffer import FrameBuffer
from millrace_worker.frames import ToEngine, unpack_to_engine

_CHUNK = 1 << 20


class FrontLink:
    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._socket.setblocking(True)
        self._buffer = FrameBuffer()
        self._closed = False

    def send(self, data: bytes) -> None:
        """Writes a frame; a front that is gone is noticed by the next receive."""
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            self._closed = True

    def receive_body(self) -> bytes | None:
        """The next frame's body, waiting for it; None at the end of the stream."""
        while True:
            body = self._buffer.next()
            if body is not None:
                return body
            if self._closed:
                return None
            self._fill()

    def receive(self, *, timeout: float | None) -> Iterator[ToEngine | None]:
        """All frames that have arrived, then None if the front is gone.

        Waits for the first of either, at most so many seconds; None: for ever.
        """
        found = False
        while True:
            body = self._buffer.next()
            if body is not None:
                found = True
                yield unpack_to_engine(body)
            elif self._closed:
                yield None
                return
            elif select.select([self._socket], [], [], 0 if found else timeout)[0]:
                self._fill()
            else:
                return

    def _fill(self) -> None:
        try:
            data = self._socket.recv(_CHUNK)
        except ConnectionResetError:
            data = b""
        self._closed = not data
        self._buffer.feed(data)
