"""A worker's engine process without the worker: started, given one request at a time, and killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from millrace_worker.cache_stats import CacheStats
from millrace_worker.config import EngineConfig, engine_environ
from millrace_worker.frame_buffer import FrameBuffer
from millrace_worker.frames import (
    AddSequence,
    FromEngine,
    PinnedPrefix,
    Ready,
    SequenceParams,
    StartFailed,
    StepOutput,
    ToEngine,
    pack,
    unpack_from_engine,
)

from .first_token import FirstToken, FirstTokenClock
from .peer_process import PeerFailed, last_line

_CHUNK = 1 << 20
#: Seconds for a killed process to be gone.
_END = 30.0


class EngineProcess:
    """Killed with all that it started when it is left. Its words go to `log`.

    Methods raise PeerFailed when the engine ends, refuses, or says nothing for `silence` seconds.
    """

    def __init__(self, config: EngineConfig, log: Path, silence: float) -> None:
        """Returns once it is ready."""
        self._log, self._silence = log, silence
        self._words: IO[bytes] = log.open("ab")
        self._buffer = FrameBuffer()
        #: What its cache has done, as far as it has told.
        self.stats = CacheStats()
        ours, theirs = socket.socketpair()
        began = time.perf_counter()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "millrace_worker.engine", "--fd", str(theirs.fileno()), "--log-format", "json"],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._words,
                stderr=self._words,
                env=engine_environ(),
                start_new_session=True,
            )
        self._socket = ours
        ours.settimeout(silence)
        try:
            self._send(pack(config))
            frame = self._frame()
            if isinstance(frame, StartFailed):
                raise PeerFailed(frame.message)
            assert isinstance(frame, Ready)
        except BaseException:
            self.kill()
            raise
        #: From its start until it was ready.
        self.seconds = time.perf_counter() - began
        self.ready = frame

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def pin(self, prefix: PinnedPrefix) -> float:
        """Seconds from when it was told of a pin until that is resident."""
        began = time.perf_counter()
        self._send(pack(ToEngine(pin=[prefix])))
        while True:
            for state in self._output().pins or ():
                if state.problem:
                    raise PeerFailed(f"the pin is not resident: {state.problem}")
                if state.tier == "gpu":
                    return time.perf_counter() - began

    def first_token(self, prompt: list[int], params: SequenceParams) -> FirstToken:
        """Of a request alone."""
        clock = FirstTokenClock(time.perf_counter)
        self._send(pack(ToEngine(add=[AddSequence(0, prompt, [], params)])))
        while True:
            output = self._output()
            if output.refused:
                raise PeerFailed(f"it was refused: {output.refused[0].message}")
            if clock.take(output):
                return clock.found

    def kill(self) -> None:
        """As `kill -9` does, and waits until it is gone: its memory and its directory are free then."""
        end = time.monotonic() + _END
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(_END)
            while time.monotonic() < end:
                os.killpg(self._process.pid, 0)
                time.sleep(0.01)
        self._socket.close()
        self._words.close()

    def _send(self, data: bytes) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the next frame that does not come says so
            self._socket.sendall(data)

    def _output(self) -> StepOutput:
        frame = self._frame()
        assert isinstance(frame, StepOutput)
        self.stats = frame.cache or self.stats
        return frame

    def _frame(self) -> FromEngine:
        while (body := self._buffer.next()) is None:
            try:
                data = self._socket.recv(_CHUNK)
            except TimeoutError as e:
                raise PeerFailed(f"the engine said nothing for {self._silence:g} s") from e
            except ConnectionResetError:
                data = b""
            if not data:
                raise PeerFailed(f"the engine ended: {last_line(self._log)}")
            self._buffer.feed(data)
        return unpack_from_engine(body)
