"""An engine process that is killed while it writes leaves a cache that the next one uses."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from disk_parts import BLOCK, GREEDY, ask, disk_config, ids, records
from greedy import save
from millrace_worker.config import EngineConfig
from millrace_worker.engine.engine import Engine
from millrace_worker.engine.link import FrontLink
from millrace_worker.frames import AddSequence, StepOutput, ToEngine, pack, unpack_from_engine

#: Prompts without a common beginning.
MANY = [ids(60 + n, 50 + n) for n in range(40)]


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


def test_after_a_kill_in_the_middle_of_writing_what_is_there_is_used(tmp_path: Path) -> None:
    model, directory = save("llama3-untied", tmp_path), tmp_path / "cache"
    config = disk_config(model, directory, blocks=1000)
    wanted = ask(Engine(disk_config(model, None, enable_prefix_caching=False)), MANY)
    engine = EngineProcess(config)
    assert engine.ask(MANY) == wanted
    engine.ask(MANY, until=lambda: len(records(directory)) > 0)
    while len(records(directory)) < 5:
        time.sleep(0.001)
    engine.kill()
    written = len(records(directory))
    all_blocks = sum((len(prompt) - 1) // BLOCK for prompt in MANY)
    assert written < all_blocks, "it was through before it was killed"
    again = Engine(config)
    assert again.cache_stats.disk_blocks == written
    assert ask(again, MANY) == wanted
    assert again.cache_stats.disk_hit_tokens > 0
    again.close()
    assert not list(directory.rglob("*.tmp*"))
