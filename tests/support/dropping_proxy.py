"""A TCP proxy that loses replies: the server did what it was asked, and the client never hears of it."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType


class DroppingProxy:
    """Forwards to `port`. The reply to a request that contains a marker given to `drop` is lost with its connection."""

    def __init__(self, port: int):
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._markers: list[bytes] = []
        self._lock = threading.Lock()
        #: Markers whose replies were lost.
        self.dropped: list[bytes] = []

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def drop(self, *markers: bytes) -> None:
        with self._lock:
            self._markers += markers

    def __enter__(self) -> DroppingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                threading.Thread(target=self._requests, args=(client, server), daemon=True).start()
                threading.Thread(target=self._copy, args=(server, client), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 20):
                lose = self._matches(data)
                if lose:
                    # The reply then goes nowhere, and the client sees its connection end.
                    client.shutdown(socket.SHUT_RDWR)
                server.sendall(data)
                if lose:
                    break
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                target.sendall(data)
        for sock in (source, target):
            sock.close()

    def _matches(self, data: bytes) -> bool:
        with self._lock:
            for marker in self._markers:
                if marker in data:
                    self._markers.remove(marker)
                    self.dropped.append(marker)
                    return True
        return False
