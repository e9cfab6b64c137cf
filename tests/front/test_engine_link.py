"""The link to real processes that behave badly."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import fake_engine
from millrace_worker.config import EngineConfig
from millrace_worker.errors import EngineDied
from millrace_worker.frames import AddSequence, PinnedPrefix, SequenceParams, StepOutput
from millrace_worker.front.engine_link import EngineLink, EngineStartFailed
from millrace_worker.stream.heartbeat import Watchdog

ENGINE = (sys.executable, str(Path(fake_engine.__file__)))


class Bench:
    """A link, the frames that it brought, and whether the engine is to be thought busy."""

    def __init__(self, command: tuple[str, ...], **settings: float):
        self.frames: list[StepOutput] = []
        self.busy = False
        self.watchdog = Watchdog(60.0, 60.0)
        self.link = EngineLink(
            EngineConfig(), self.frames.append, lambda: self.busy, self.watchdog, command=command, **settings
        )

    def add(self, seq_id: int, prompt: list[int], max_tokens: int = 5) -> None:
        self.busy = True
        self.link.add(AddSequence(seq_id, prompt, [], SequenceParams(max_tokens)))


def running(body: Callable[[Bench], Awaitable[None]], command: tuple[str, ...] = ENGINE, **settings: float) -> None:
    async def run() -> None:
        bench = Bench(command, **settings)
        try:
            await body(bench)
        finally:
            await bench.link.kill()

    asyncio.run(run())


def script(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text)


def test_carries_frames_and_stops() -> None:
    async def body(bench: Bench) -> None:
        ready = await bench.link.start()
        assert ready.device == "fake"
        carrying = asyncio.create_task(bench.link.run())
        bench.add(1, [1, 2])
        bench.add(2, [3, 4], 4000)
        while not any(frame.finished for frame in bench.frames):
            await asyncio.sleep(0.01)
        bench.link.abort(2)
        tokens = [t for frame in bench.frames for seq, ids in frame.tokens if seq == 1 for t in ids]
        assert tokens == fake_engine.expected_tokens([1, 2], 5)
        await asyncio.sleep(0.1)
        after = len(bench.frames)
        await asyncio.sleep(0.1)
        assert len(bench.frames) == after, "an aborted sequence goes on"
        pid = bench.link.pid
        await bench.link.stop()
        await carrying
        assert pid is not None
        assert not Path(f"/proc/{pid}").exists()

    running(body)


def test_what_comes_together_goes_in_one_frame() -> None:
    """This engine reads a frame a step."""

    async def body(bench: Bench) -> None:
        await bench.link.start()
        carrying = asyncio.create_task(bench.link.run())
        for seq_id in range(1, 9):
            bench.add(seq_id, [seq_id])
        while not bench.frames:
            await asyncio.sleep(0.01)
        assert [started.seq_id for started in bench.frames[0].started] == list(range(1, 9))
        await bench.link.stop()
        await carrying

    running(body)


def test_pins_that_change_before_their_frame_leaves() -> None:
    """An engine is told what is so in the end: in a frame, pins and unpins have no order."""
    one, other, third = (PinnedPrefix(name, [n] * 16) for n, name in enumerate("abc"))

    async def body(bench: Bench) -> None:
        await bench.link.start()
        carrying = asyncio.create_task(bench.link.run())

        async def told(*names: str) -> None:
            while not bench.frames or [pin.pin_id for pin in bench.frames[-1].pins or ()] != list(names):
                await asyncio.sleep(0.01)

        for prefix in (one, other):
            bench.link.pin(prefix)
        bench.link.unpin("b")
        await told("a")
        bench.link.unpin("a")
        bench.link.pin(one)
        bench.link.pin(third)
        await told("a", "c")
        bench.link.unpin("a")
        bench.link.pin(one)
        bench.link.unpin("a")
        await told("c")
        await bench.link.stop()
        await carrying

    running(body)


@pytest.mark.parametrize(
    ("command", "kind", "words"),
    [
        ((*ENGINE, "--fail", "no such weights"), EngineStartFailed, "^no such weights$"),
        (script("import os; os._exit(3)"), EngineDied, "exit code 3 before it was ready"),
        (script("import os, signal; os.kill(os.getpid(), 9)"), EngineDied, "SIGKILL before it was ready"),
        (script("import time; time.sleep(60)"), EngineDied, "not ready after"),
        (script("import os, sys; os.write(int(sys.argv[-1]), b'junkjunkjunk'); os._exit(0)"), EngineDied, "engine"),
    ],
    ids=["says why", "exits", "is killed", "says nothing", "says nonsense"],
)
def test_starts_that_fail(command: tuple[str, ...], kind: type[EngineDied], words: str) -> None:
    async def body(bench: Bench) -> None:
        with pytest.raises(kind, match=words):
            await bench.link.start()
        assert bench.link.pid is not None
        assert not Path(f"/proc/{bench.link.pid}").exists()

    running(body, command, start_timeout=0.7)


def test_death_is_seen_with_its_cause() -> None:
    async def body(bench: Bench) -> None:
        await bench.link.start()
        bench.add(1, [fake_engine.POISON])
        died = await bench.link.run()
        assert died.exit_code == 9
        assert "exit code 9 while it served" in str(died)

    running(body)


def test_silence_with_work_is_death_and_without_is_not() -> None:
    async def body(bench: Bench) -> None:
        await bench.link.start()
        carrying = asyncio.create_task(bench.link.run())
        await asyncio.sleep(0.9)
        assert not carrying.done()
        began = time.monotonic()
        bench.add(1, [fake_engine.HANG])
        died = await carrying
        assert "said nothing" in str(died)
        assert time.monotonic() - began > 0.2
        assert not Path(f"/proc/{bench.link.pid}").exists()

    running(body, silence_timeout=0.4)


def test_frames_that_nobody_can_read_end_the_engine() -> None:
    text = (
        "import socket, sys, time; sys.path[:0] = {path!r}; from fake_engine import Ready, pack;"
        "s = socket.socket(fileno=int(sys.argv[-1])); s.sendall(pack(Ready('x', 9, 9, 16, 9, 9)));"
        "s.sendall(bytes([3, 0, 0, 0]) + b'abc'); time.sleep(60)"
    ).format(path=[str(Path(fake_engine.__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])

    async def body(bench: Bench) -> None:
        await bench.link.start()
        died = await bench.link.run()
        assert "could not be handled" in str(died)
        assert not Path(f"/proc/{bench.link.pid}").exists()

    running(body, script(text))
