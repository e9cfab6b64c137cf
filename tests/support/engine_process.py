"""A real engine process, with a test as its front."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import msgspec

from disk_parts import GREEDY
from millrace_worker.config import EngineConfig
from millrace_worker.engine.link import FrontLink
from millrace_worker.frames import AddSequence, StepOutput, ToEngine, pack, unpack_from_engine


class EngineProcess:
    """A real engine process, spoken to as its front does."""

    def __init__(self, config: EngineConfig) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "millrace_worker.engine", "--fd", str(theirs.fileno()), "--log-level", "error"]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env={**os.environ, "OMP_NUM_THREADS": "1"})
        theirs.close()
        self._socket, self._link = ours, FrontLink(ours)
        body = msgspec.msgpack.encode(config)
        self._link.send(len(body).to_bytes(4, "little") + body)
        self._frame()

    def ask(self, prompts: list[list[int]], *, until: Callable[[], bool] = lambda: False) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in prompts]
        self._link.send(pack(ToEngine(add=[AddSequence(n, prompt, [], GREEDY) for n, prompt in enumerate(prompts)])))
        left = len(prompts)
        while left and not until():
            output = self._frame()
            left -= len(output.finished)
            for number, tokens in output.tokens:
                answers[number] += tokens
        return answers

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(30)
        self._socket.close()

    def _frame(self) -> StepOutput:
        body = self._link.receive_body()
        assert body is not None, "the engine is gone"
        return unpack_from_engine(body)  # type: ignore[return-value]
