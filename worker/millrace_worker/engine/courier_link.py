"""The courier's process, which is started again when it ends, and the socket to it."""

from __future__ import annotations

import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import msgspec
import structlog

from millrace_worker.courier_frames import FromCourier, Start, ToCourier, unpack_from_courier
from millrace_worker.frame_buffer import FrameBuffer
from millrace_worker.frames import pack

from .pause import Pause

log = structlog.get_logger()

#: The courier's executable; "--fd N" is added.
COURIER_COMMAND = (sys.executable, "-m", "millrace_worker.courier")

_CHUNK = 1 << 16
#: Seconds for a frame to be taken; a courier that does not read is as good as dead.
_SEND_SECONDS = 5.0
#: Seconds for a process to be gone once it was told to, or killed.
_EXIT_SECONDS = 1.0


class CourierLink:
    """For one thread, but for `wake` and `kill`."""

    def __init__(self, start: Start, restart: Pause) -> None:
        self._start, self._restart = start, restart
        #: Why no courier can ever work here.
        self.hopeless = ""
        #: When it said something last, or was started.
        self.heard_at = 0.0
        #: Whether there is one, which has said something: what it is asked for before that may be lost.
        self.is_ready = False
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._buffer = FrameBuffer()
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)

    @property
    def pid(self) -> int | None:
        """None while there is no courier."""
        process = self._process
        return None if process is None else process.pid

    def wake(self) -> None:
        """Ends the `receive` that waits now, or the next one."""
        with suppress(OSError):
            self._waker.send(b".")

    def kill(self) -> None:
        """What it was asked for fails, and it is started again."""
        process = self._process
        if process is not None:
            process.kill()

    def receive(self, seconds: float) -> Iterator[FromCourier | None]:
        """Frames that are there, waiting for the first one; None: it died, and what it was asked for is not done."""
        if self._process is None and not self.hopeless and self._restart.is_over:
            self._spawn()
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._woken:
                with suppress(BlockingIOError):
                    self._woken.recv(_CHUNK)
            else:
                yield from self._read()

    def send(self, frame: ToCourier) -> None:
        """A courier that is gone or does not read is noticed by `receive`."""
        if self._socket is None:
            return
        try:
            self._socket.sendall(pack(frame))
        except OSError:
            self.kill()

    def worked(self) -> None:
        """It is of use: should it die, it is started again soon."""
        self._restart.worked()

    def close(self) -> None:
        """Ends the courier, and what it is doing."""
        self._end()
        self._selector.close()
        self._waker.close()
        self._woken.close()

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [*COURIER_COMMAND, "--fd", str(theirs.fileno())]
            try:
                self._process = subprocess.Popen(
                    command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
                )
            except OSError as e:
                ours.close()
                log.warning(
                    "the courier of the S3 cache cannot be started", reason=str(e), seconds=self._restart.begin()
                )
                return
        ours.settimeout(_SEND_SECONDS)
        self._socket, self._buffer = ours, FrameBuffer()
        self._selector.register(ours, selectors.EVENT_READ)
        self.heard_at = time.monotonic()
        with suppress(OSError):  # it died already, which is noticed by reading
            ours.sendall(pack(self._start))

    def _read(self) -> Iterator[FromCourier | None]:
        assert self._socket is not None
        try:
            data = self._socket.recv(_CHUNK)
            self._buffer.feed(data)
            while (body := self._buffer.next()) is not None:
                frame = unpack_from_courier(body)
                self.heard_at, self.hopeless = time.monotonic(), frame.hopeless
                self.is_ready = not self.hopeless
                yield frame
        except (OSError, ValueError, msgspec.MsgspecError):
            data = b""
        if not data:
            code = self._end()
            if self.hopeless:
                log.warning("no S3 cache", reason=self.hopeless)
            else:
                log.warning("the courier of the S3 cache died", exit_code=code, seconds=self._restart.begin())
            yield None

    def _end(self) -> int | None:
        """The exit code."""
        process, sock = self._process, self._socket
        self._process = self._socket = None
        self.is_ready = False
        if sock is not None:
            self._selector.unregister(sock)
            sock.close()
        if process is None:
            return None
        try:
            return process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        with suppress(subprocess.TimeoutExpired):
            return process.wait(_EXIT_SECONDS)
        return None
