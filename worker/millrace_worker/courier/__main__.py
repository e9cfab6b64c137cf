"""The courier process: `python -m millrace_worker.courier --fd N`, started by an engine with one end of a socketpair.

It ends when that engine does, however it does.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import threading
from collections.abc import Iterator

from millrace_worker.courier_frames import FromCourier, Start, ToCourier, unpack_to_courier
from millrace_worker.frame_buffer import FrameBuffer
from millrace_worker.frames import pack

from .courier import Courier

_CHUNK = 1 << 16


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m millrace_worker.courier")
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the engine")
    link = _EngineLink(socket.socket(fileno=parser.parse_args().fd))
    # The engine says when to end, and says it by ending.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    courier: Courier | None = None
    for frame in link.frames():
        if isinstance(frame, Start):
            courier = Courier(frame, link.send)
            threading.Thread(target=_open, args=(frame, courier, link), name="courier-open", daemon=True).start()
        elif courier is not None:
            courier.take(frame)
    # At once: requests may hang, and nobody waits for them any more.
    os._exit(0)


def _open(start: Start, courier: Courier, link: _EngineLink) -> None:
    try:
        # Here and not on top: boto3 takes a while to load, during which the engine may end.
        from .bucket import Bucket

        bucket = Bucket(start)
    except Exception as e:  # noqa: BLE001 - no boto3, or a configuration that it does not take
        link.send(FromCourier(hopeless=f"{type(e).__name__}: {e}"))
        os._exit(1)
    courier.serve(bucket)


class _EngineLink:
    """The courier's end of the socketpair: any thread may send, one receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket, self._lock = sock, threading.Lock()

    def frames(self) -> Iterator[Start | ToCourier]:
        """Frames as they come, until the engine is gone."""
        buffer = FrameBuffer()
        while data := self._receive():
            buffer.feed(data)
            while (body := buffer.next()) is not None:
                yield unpack_to_courier(body)

    def send(self, frame: FromCourier) -> None:
        try:
            with self._lock:
                self._socket.sendall(pack(frame))
        except OSError:
            os._exit(0)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(_CHUNK)
        except OSError:
            return b""


if __name__ == "__main__":
    main()
