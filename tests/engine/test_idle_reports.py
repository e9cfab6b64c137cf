"""What tiers do while no step runs is told to the front, which says nothing meanwhile."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from disk_parts import GREEDY, PROMPTS, SHARED, LateCopies, LateCopy, disk_config
from millrace_worker.engine import disk_tier, keeping, loop, tier_setup, tiered_cache
from millrace_worker.engine.__main__ import serve
from millrace_worker.engine.disk_requests import TierLimits
from millrace_worker.engine.engine import Engine
from millrace_worker.engine.kv_record import write_record
from millrace_worker.engine.link import FrontLink
from millrace_worker.frames import AddSequence, StepOutput, ToEngine, pack, unpack_from_engine


class _HeldCopy(LateCopy):
    """Not done before a test says so; waiting for it takes as long."""

    @property
    def is_done(self) -> bool:
        if not _Held.go_on.is_set():
            return False
        super().wait()
        return True

    def wait(self) -> None:
        assert _Held.go_on.wait(30)
        super().wait()


class _Held(LateCopies):
    go_on = threading.Event()

    def _copy(self, blocks: list[int], host: list[torch.Tensor], pairs: list[Any], stream: Any) -> Any:
        return _HeldCopy(blocks, host, pairs, 0)


class _HeldUp(_Held):
    """They do not even begin before."""

    def to_host(self, blocks: list[int], host: list[torch.Tensor]) -> Any:
        assert self.go_on.wait(30)
        return super().to_host(blocks, host)


class Front:
    def __init__(self, sock: socket.socket) -> None:
        self._socket, self._link = sock, FrontLink(sock)
        sock.settimeout(20)  # a link makes its socket wait for ever

    def tell(self, **what: Any) -> None:
        self._link.send(pack(ToEngine(**what)))

    def hear(self) -> StepOutput:
        body = self._link.receive_body()
        assert body is not None
        output = unpack_from_engine(body)
        assert isinstance(output, StepOutput)
        return output

    def hears_nothing(self, seconds: float) -> bool:
        self._socket.settimeout(seconds)
        try:
            return self._link.receive_body() is None
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(20)

    def ask(self) -> None:
        """Until all are answered."""
        self.tell(add=[AddSequence(number, prompt, [], GREEDY) for number, prompt in enumerate(PROMPTS)])
        left = len(PROMPTS)
        while left:
            left -= len(self.hear().finished)


@pytest.fixture
def front(monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path) -> Iterator[Front]:
    monkeypatch.setattr(loop, "_REPORT_EVERY", 0.1)
    monkeypatch.setattr(disk_tier, "TierLimits", partial(TierLimits, open_seconds=0.01, lock_seconds=0.02))
    with _served(Engine(disk_config(model, tmp_path))) as front:
        yield front


@contextmanager
def _served(engine: Engine) -> Iterator[Front]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        thread = threading.Thread(target=serve, args=(engine, FrontLink(theirs)))
        thread.start()
        front = Front(ours)
        try:
            yield front
        finally:
            front.tell(shutdown=True)
            thread.join(40)
            assert not thread.is_alive()
            engine.close()


@pytest.fixture
def user(model: Path, tmp_path: Path) -> Iterator[Engine]:
    """Of the directory, before the engine of `front`."""
    engine = Engine(disk_config(model, tmp_path))
    assert engine.cache_stats.open == {"disk": 1}
    yield engine
    engine.close()


def test_a_tier_that_opens_later(user: Engine, front: Front) -> None:
    """And that it is not open is told before the first job."""
    output = front.hear()
    assert output.cache is not None
    assert output.cache.open == {"disk": 0}
    user.close()
    output = front.hear()
    assert output.cache is not None
    assert output.cache.open == {"disk": 1}
    assert (output.sequences, output.load.total_blocks, output.load.allocated_slots) == (0, 200, 0)
    assert front.hears_nothing(0.5)


def test_a_write_that_ends_later(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def write(*arguments: Any) -> None:
        go_on.wait(30)
        write_record(*arguments)

    monkeypatch.setattr(disk_tier, "write_record", write)
    front.ask()
    front.ask()
    while not front.hears_nothing(0.5):
        pass
    go_on.set()
    while True:
        output = front.hear()
        assert output.cache is not None
        if output.cache.disk_blocks >= SHARED:
            break
    assert output.cache.written_blocks == output.cache.disk_blocks


def test_answers_do_not_wait_for_what_is_copied_out(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setattr(loop, "_REPORT_EVERY", 0.1)
    monkeypatch.setattr(tier_setup, "BlockCopies", _Held)
    monkeypatch.setattr(_Held, "go_on", threading.Event())
    with _served(Engine(disk_config(model, None, cpu_cache_gb=0.01))) as front:
        front.ask()
        front.ask()
        # Copies that never end hold nobody up, and the front hears nothing of them.
        front.ask()
        while not front.hears_nothing(0.5):
            pass
        _Held.go_on.set()
        while (cache := front.hear().cache) is None or cache.blocks["cpu"] < SHARED:
            pass


def test_answers_do_not_wait_until_copies_have_begun(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setattr(tier_setup, "BlockCopies", _HeldUp)
    monkeypatch.setattr(_Held, "go_on", threading.Event())
    params = msgspec.structs.replace(GREEDY, max_tokens=1)
    with _served(Engine(disk_config(model, None, cpu_cache_gb=0.01))) as front:
        for number in range(2):
            front.tell(add=[AddSequence(number, PROMPTS[0], [], params)])
            while not front.hear().finished:
                pass
        _Held.go_on.set()


def test_a_job_that_waits_for_blocks_held_by_copies_does_not_spin(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """Where nothing else runs there is nothing to wait for but the time until a copy is looked at again."""
    monkeypatch.setattr(tier_setup, "BlockCopies", _Held)
    monkeypatch.setattr(_Held, "go_on", threading.Event())
    engine = Engine(disk_config(model, None, cpu_cache_gb=0.01))
    for _ in range(2):
        engine.add(AddSequence(0, PROMPTS[0], [], GREEDY))
        while engine.has_work:
            engine.advance()
            engine.tend()
    tier, slept = engine.scheduler.tier, []
    assert tier.is_copying
    monkeypatch.setattr(tiered_cache.time, "sleep", slept.append)
    tier.wait(0.005)
    assert len(slept) == 1
    assert 0 < slept[0] <= 0.005
    monkeypatch.undo()
    _Held.go_on.set()
    engine.close()


def test_an_idle_engine_copies_all_that_is_wanted(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """A block at a time, as if much more time had to pass between two; and no report is due that would wake it."""
    monkeypatch.setattr(loop, "_REPORT_EVERY", 1000.0)
    monkeypatch.setattr(keeping, "GROUP_BYTES", 1)
    monkeypatch.setattr(keeping, "_BYTES_PER_SECOND", 1.0)
    engine = Engine(disk_config(model, None, cpu_cache_gb=0.01))
    tier, end = engine.scheduler.tier, time.monotonic() + 20
    with _served(engine) as front:
        front.ask()
        front.ask()
        while tier.is_copying or tier.stats.blocks["cpu"] < SHARED:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_what_is_so_from_the_start_is_told_without_a_job(model: Path, tmp_path: Path) -> None:
    """What the engine's first own steps reported, nobody has heard."""
    (tmp_path / "file").touch()
    engine = Engine(disk_config(model, tmp_path / "file", cpu_cache_gb=0.01))
    assert engine.pause() == 0.0
    output = engine.report()
    assert output is not None
    assert output.cache is not None
    assert output.cache.open == {"cpu": 1, "disk": 0}
    assert 0 < (engine.pause() or 0) <= 1
    assert engine.report() is None
    engine.close()
