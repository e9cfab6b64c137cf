"""A TCP proxy before Redis that loses replies on purpose: the command ran, and its caller never learns."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType

from millrace.embedded import EmbeddedRedis


class LossyProxy:
    """Forwards to `server`. After `lose(n)`, the replies to the next n writes that hold `command` are lost.

    `cut` closes the connection in place of the reply; without it the client hears nothing and must time out.
    """

    def __init__(self, server: EmbeddedRedis, *, command: bytes = b"EVALSHA", cut: bool = True):
        self.lost = 0
        self._target = ("127.0.0.1", server.port)
        self._command = command
        self._cut = cut
        self._to_lose = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def lose(self, count: int) -> None:
        with self._lock:
            self._to_lose = count

    def __enter__(self) -> LossyProxy:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _close(self._listener)
        for opened in self._sockets:
            _close(opened)
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._sockets += [client, server]
            thread = threading.Thread(target=self._serve, args=(client, server), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        """Redis answers only what it is asked, so one thread that takes turns would do; pushes need the second."""
        muted = threading.Event()
        back = threading.Thread(target=self._return, args=(server, client, muted), daemon=True)
        back.start()
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 20):
                if self._loses(data):
                    muted.set()
                server.sendall(data)
        _close(server)
        back.join(5)

    def _return(self, server: socket.socket, client: socket.socket, muted: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 20):
                if not muted.is_set():
                    client.sendall(data)
                elif self._cut:
                    break
        _close(client)

    def _loses(self, data: bytes) -> bool:
        with self._lock:
            if self._to_lose == 0 or self._command not in data:
                return False
            self._to_lose -= 1
            self.lost += 1
            return True


def _close(opened: socket.socket) -> None:
    with contextlib.suppress(OSError):
        opened.shutdown(socket.SHUT_RDWR)
    opened.close()
