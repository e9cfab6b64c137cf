"""One engine process and the socket to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence

import msgspec
import structlog

from millrace_schemas.aio import end_tasks
from millrace_worker.config import EngineConfig, engine_environ
from millrace_worker.errors import EngineDied
from millrace_worker.frames import (
    MAX_FRAME_BYTES,
    AddSequence,
    PinnedPrefix,
    Ready,
    StartFailed,
    StepOutput,
    ToEngine,
    pack,
    unpack_from_engine,
)
from millrace_worker.stream.heartbeat import Watchdog

log = structlog.get_logger(__name__)

#: The engine's executable; "--fd N" is added.
ENGINE_COMMAND = (sys.executable, "-m", "millrace_worker.engine")

_LENGTH = struct.Struct("<I")
_LIMIT = 1024 * 1024
#: Seconds for an engine that was told to end, before it is killed.
_EXIT_TIMEOUT = 10.0


class EngineStartFailed(EngineDied):
    """The engine says why it cannot start; trying again is of little use."""


class EngineLink:
    """Starts an engine, carries frames, notices its death. One object for one process; `busy` is the front's knowledge.

    `on_step` is called in the loop for each frame, never after `run` has returned.
    """

    def __init__(
        self,
        config: EngineConfig,
        on_step: Callable[[StepOutput], None],
        busy: Callable[[], bool],
        watchdog: Watchdog,
        *,
        command: Sequence[str] = ENGINE_COMMAND,
        start_timeout: float = 3600.0,
        silence_timeout: float = 120.0,
    ):
        self._config = config
        self._on_step = on_step
        self._busy = busy
        self._watchdog = watchdog
        self._command = tuple(command)
        self._start_timeout = start_timeout
        self._silence_timeout = silence_timeout
        self._add: list[AddSequence] = []
        self._abort: list[int] = []
        self._pin: list[PinnedPrefix] = []
        self._unpin: list[str] = []
        self._to_send = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._spoke_at = 0.0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> Ready:
        """Spawns the engine and waits until it serves.

        Raises EngineStartFailed with the engine's own words, EngineDied when it ends or says nothing for start_timeout.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                *("--fd", str(theirs.fileno())),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env=engine_environ(),
                # Ctrl-C in a terminal is for the front, which needs the engine while it drains.
                start_new_session=True,
            )
        self._reader, self._writer = await asyncio.open_connection(sock=ours, limit=_LIMIT)
        try:
            self._writer.write(pack(self._config))
            async with asyncio.timeout(self._start_timeout):
                frame = await self._frame()
        except TimeoutError:
            await self.kill()
            raise EngineDied(f"the engine was not ready after {self._start_timeout:.0f} s") from None
        except (OSError, asyncio.IncompleteReadError, msgspec.DecodeError):
            raise await self._died("before it was ready") from None
        except EngineDied:
            await self.kill()
            raise
        if isinstance(frame, StartFailed):
            await self.kill()
            raise EngineStartFailed(frame.message)
        if not isinstance(frame, Ready):
            await self.kill()
            raise EngineDied(f"the engine's first frame is {type(frame).__name__}, not Ready")
        return frame

    def add(self, sequence: AddSequence) -> None:
        self._add.append(sequence)
        self._to_send.set()

    def abort(self, seq_id: int) -> None:
        before = len(self._add)
        self._add = [sequence for sequence in self._add if sequence.seq_id != seq_id]
        if len(self._add) == before:
            self._abort.append(seq_id)
            self._to_send.set()

    def pin(self, prefix: PinnedPrefix) -> None:
        if prefix.pin_id in self._unpin:
            # It has not heard that it may let go.
            self._unpin.remove(prefix.pin_id)
        else:
            self._pin.append(prefix)
            self._to_send.set()

    def unpin(self, pin_id: str) -> None:
        before = len(self._pin)
        self._pin = [prefix for prefix in self._pin if prefix.pin_id != pin_id]
        if len(self._pin) == before:
            self._unpin.append(pin_id)
            self._to_send.set()

    async def run(self) -> EngineDied:
        """Carries frames until the engine is gone; returns why."""
        tasks = [asyncio.create_task(work()) for work in (self._read, self._write, self._watch)]
        self._spoke_at = time.monotonic()
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_tasks(*tasks)
            self._watchdog.engine_spoke(None)
        for task in done:
            error = task.exception()
            if isinstance(error, EngineDied):
                await self.kill()
                return error
            if error is not None and not isinstance(error, (OSError, asyncio.IncompleteReadError)):
                log.error("a frame of the engine could not be handled", exc_info=error)
                await self.kill()
                return EngineDied(f"a frame of the engine could not be handled: {error!r}")
        return await self._died("while it served")

    async def stop(self) -> None:
        """Asks the engine to end, and kills it when it does not."""
        if self._process is None or self._process.returncode is not None:
            return
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.write(pack(ToEngine(shutdown=True)))
                self._writer.close()
        await self._reap(_EXIT_TIMEOUT)

    async def kill(self) -> None:
        """Ends the engine and all processes that it started."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        if self._writer is not None:
            self._writer.close()

    async def _frame(self) -> Ready | StartFailed | StepOutput:
        assert self._reader is not None
        (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
        if length > MAX_FRAME_BYTES:
            raise EngineDied(f"the engine sent a frame of {length} bytes; the most is {MAX_FRAME_BYTES}")
        return unpack_from_engine(await self._reader.readexactly(length))

    async def _read(self) -> None:
        while True:
            frame = await self._frame()
            self._spoke_at = time.monotonic()
            if isinstance(frame, StepOutput):
                self._on_step(frame)

    async def _write(self) -> None:
        assert self._writer is not None
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            frame = ToEngine(self._add, self._abort, pin=self._pin, unpin=self._unpin)
            self._add, self._abort, self._pin, self._unpin = [], [], [], []
            self._writer.write(pack(frame))
            # While the engine is in a long step the socket fills, and what comes meanwhile becomes one frame.
            await self._writer.drain()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._silence_timeout / 8))
            if not self._busy():
                # Silence counts from when it last had nothing to do.
                self._spoke_at = time.monotonic()
            self._watchdog.engine_spoke(self._spoke_at if self._busy() else None)
            silence = time.monotonic() - self._spoke_at
            if silence > self._silence_timeout:
                raise EngineDied(f"the engine has work and said nothing for {silence:.0f} s")

    async def _died(self, when: str) -> EngineDied:
        code = await self._reap(_EXIT_TIMEOUT)
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
            return EngineDied(f"the engine was ended by {name} {when}", code)
        return EngineDied(f"the engine ended with exit code {code} {when}", code)

    async def _reap(self, timeout: float) -> int | None:
        assert self._process is not None
        try:
            async with asyncio.timeout(timeout):
                await self._process.wait()
        except TimeoutError:
            pass
        await self.kill()
        return self._process.returncode
