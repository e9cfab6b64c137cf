"""Pins and the disk cache: written at once, dropped last, and read back by the next engine before it has jobs."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import msgspec
import torch

from disk_parts import BLOCK, GREEDY, ask, disk_config, ids, records, settle
from engine_process import EngineProcess
from millrace_worker.config import EngineConfig
from millrace_worker.engine.disk_index import DiskIndex
from millrace_worker.engine.disk_requests import TierLimits
from millrace_worker.engine.disk_tier import DiskTier
from millrace_worker.engine.engine import Engine
from millrace_worker.engine.fingerprint import Identity
from millrace_worker.frames import AddSequence, PinnedPrefix, PinState, SequenceParams, StepOutput, ToEngine, pack
from millrace_worker.model_path import resolve_model

SYSTEM = ids(42, 1)
SHARED = len(SYSTEM) // BLOCK
PIN = PinnedPrefix("a", SYSTEM)


def warm(engine: Engine, pin: PinnedPrefix = PIN) -> PinState:
    engine.pin(pin)
    state: PinState | None = None
    while engine.has_work:
        pins = engine.step().pins
        engine.scheduler.check_integrity()
        if pins is not None:
            state = {state.pin_id: state for state in pins}.get(pin.pin_id)
    assert state is not None
    return state


def test_a_pin_is_written_at_once_and_read_back_by_the_next_engine(model: Path, tmp_path: Path) -> None:
    engine = Engine(disk_config(model, tmp_path))
    assert (warm(engine).tier, warm(engine, PinnedPrefix("b", SYSTEM, "acme")).tier) == ("gpu", "gpu")
    settle(engine, blocks=2 * SHARED)
    engine.close()
    assert len(records(tmp_path)) == 2 * SHARED
    again = Engine(disk_config(model, tmp_path))
    again.pin(PIN)
    tokens, tiers = 0, []
    while again.has_work:
        output = again.step()
        tokens += output.batched_tokens
        tiers += [state.tier for state in output.pins or ()]
    assert (tokens, tiers) == (1, ["disk", "gpu"])
    stats = again.cache_stats
    assert (stats.read_blocks, stats.disk_hit_tokens, stats.misses) == (SHARED, 0, {})
    prompt = [*SYSTEM, *ids(5, 2)]
    wanted = ask(Engine(disk_config(model, None, enable_prefix_caching=False)), [prompt])
    assert ask(again, [prompt]) == wanted
    assert again.cache_stats.gpu_hit_tokens == SHARED * BLOCK
    again.close()


def test_marked_prompts_are_written_when_they_are_seen_for_the_first_time(model: Path, tmp_path: Path) -> None:
    marked = msgspec.structs.replace(GREEDY, marked=True)
    engine = Engine(disk_config(model, tmp_path))
    ask(engine, [ids(30, 3)], GREEDY)
    ask(engine, [[*ids(16, 3), *ids(8, 4)]], marked)
    engine.close()
    # Of what both begin with four blocks, and two of its own; nothing of the first one's, and no answer.
    assert len(records(tmp_path)) == 6


def test_a_job_that_computes_a_pin_first_writes_it(model: Path, tmp_path: Path) -> None:
    """One too large to be held: its blocks are protected, and kept at the first sighting."""
    engine = Engine(disk_config(model, tmp_path, blocks=50))
    long = PinnedPrefix("a", ids(13 * BLOCK, 3))
    assert warm(engine, long).problem == "no_room"
    ask(engine, [[*long.tokens, 5, 6, 7, 8, 9]])
    settle(engine, blocks=13)
    engine.close()
    assert len(records(tmp_path)) == 13


def test_other_prompts_do_not_push_a_pin_off_the_disk(model: Path, tmp_path: Path) -> None:
    size = Engine(disk_config(model, tmp_path / "x")).scheduler.tier._disk.record_bytes  # type: ignore[union-attr]
    cap = disk_config(model, tmp_path / "cache", disk_cache_gb=20 * size / 1e9)
    marked = msgspec.structs.replace(GREEDY, marked=True)
    engine = Engine(cap)
    warm(engine)
    settle(engine, blocks=SHARED)
    for number in range(6):
        ask(engine, [ids(41, 50 + number)], marked)
        settle(engine, blocks=SHARED + 10 * (number + 1))
        assert engine.cache_stats.disk_blocks <= 20
    names = {path.name for path in records(tmp_path / "cache")}
    pins = {name.hex() + ".kv" for name in engine.scheduler.pins._pins["a"].hashes}
    assert pins <= names
    assert len(names) == 20
    engine.close()


def test_what_the_disk_does_not_take_at_once_is_offered_again(model: Path, tmp_path: Path) -> None:
    engine = Engine(disk_config(model, tmp_path))
    tier, now = engine.scheduler.tier._disk, 0.0  # type: ignore[union-attr]
    tier.limits = TierLimits(most_written_bytes=4 * tier.record_bytes)
    engine.scheduler.pins._clock = lambda: now
    warm(engine)
    settle(engine, blocks=4)
    while engine.rest() is not None:
        now += 0.5
        while engine.has_work:
            engine.step()
        time.sleep(0.01)
        assert now < 60
    assert len(records(tmp_path)) == SHARED
    engine.close()


def test_why_the_first_job_after_a_change_of_weights_misses_its_pin(model: Path, tmp_path: Path) -> None:
    engine = Engine(disk_config(model, tmp_path))
    warm(engine)
    settle(engine, blocks=SHARED)
    engine.close()
    other = Engine(disk_config(model, tmp_path, load_format="dummy"))
    other.pin(PIN)
    ask(other, [[*SYSTEM, 5]])
    assert other.cache_stats.pinned_misses == {"fingerprint": 1}
    assert other.cache_stats.misses == {"fingerprint": 1}
    other.close()


def test_reset_prefix_cache_leaves_pins_that_come_back_from_the_disk(model: Path, tmp_path: Path) -> None:
    engine = Engine(disk_config(model, tmp_path))
    warm(engine)
    settle(engine, blocks=SHARED)
    engine.reset_prefix_cache()
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks
    ask(engine, [[*SYSTEM, 5]])
    assert engine.cache_stats.disk_hit_tokens == SHARED * BLOCK
    later = time.monotonic() + 60
    engine.scheduler.pins._clock = lambda: later
    while engine.has_work:
        engine.step()
    assert list(engine.scheduler.pins.held)
    engine.close()


def test_a_tier_that_opens_late_protects_what_it_was_told_before(tmp_path: Path) -> None:
    may_open, names = threading.Event(), [bytes([n]) * 32 for n in range(6)]
    identity = Identity(
        weights="w",
        config="c",
        dtype="float32",
        kv_dtype="float32",
        layout_version=1,
        kernels="cpu 1",
        block_size=BLOCK,
    )

    def identify() -> Identity:
        may_open.wait(10)
        return identity

    tier = DiskTier(
        tmp_path,
        0,
        block_size=BLOCK,
        block_bytes=64,
        new_buffer=lambda: torch.empty(64, dtype=torch.uint8),
        limits=TierLimits(open_seconds=0.0),
    )
    tier._cap_bytes = 4 * tier.record_bytes
    tier.start(identify)
    tier.protect(names[:3])
    tier.unprotect(names[2:3])
    assert tier.index is None
    may_open.set()
    assert tier._opened.wait(10)
    index = tier.index
    assert isinstance(index, DiskIndex)
    for name in names:
        assert index.reserve(tier.record_bytes, ())
        index.add(name, tier.record_bytes)
    assert [index.contains(name) for name in names] == [True, True, False, False, True, True]
    tier.close()


class Pinning(EngineProcess):
    """Its front tells it pins first."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self.computed = 0
        self.cached = dict[int, int]()

    def pin(self, *pins: PinnedPrefix) -> list[PinState]:
        """Waits until all are in the pool."""
        self._link.send(pack(ToEngine(pin=list(pins))))
        while True:
            states = self._frame().pins or []
            if {state.pin_id for state in states if state.tier == "gpu"} >= {pin.pin_id for pin in pins}:
                return states

    def mark(self, prompts: list[list[int]]) -> None:
        """Asks for these, which are to be kept, and does not wait."""
        params = SequenceParams(max_tokens=1, marked=True)
        self._link.send(pack(ToEngine(add=[AddSequence(n, prompt, [], params) for n, prompt in enumerate(prompts)])))

    def unpin(self, pin_id: str) -> list[PinState]:
        self._link.send(pack(ToEngine(unpin=[pin_id])))
        while (states := self._frame().pins) is None:
            pass
        return states

    def _frame(self) -> StepOutput:
        output = super()._frame()
        if isinstance(output, StepOutput):
            self.computed += output.batched_tokens
            self.cached.update({started.seq_id: started.cached for started in output.started})
        return output


def test_after_kill_9_the_next_engine_has_its_pins_before_its_first_job(tmp_path: Path) -> None:
    """The model in the package, killed while it writes other prompts; nothing of the pin is computed again."""
    demo = resolve_model("demo")
    config = disk_config(demo, tmp_path, blocks=2000, max_model_len=400, block_size=16, max_num_seqs=32)
    system = [n * 7 % 900 + 4 for n in range(300)]
    pin, blocks = PinnedPrefix("a", system), 300 // 16
    jobs = [[*system, number + 4, *(n * 11 % 900 + 4 for n in range(20))] for number in range(4)]
    wanted = ask(Engine(msgspec.structs.replace(config, disk_cache_dir=None, enable_prefix_caching=False)), jobs)
    engine = Pinning(config)
    (state,) = engine.pin(pin)
    assert (state.blocks, state.hits, state.problem) == (blocks, 0, "")
    assert engine.computed == blocks * 16 + 1
    while len(records(tmp_path)) < blocks:
        time.sleep(0.001)
    others = [[(n * 13 + number * 17) % 900 + 4 for n in range(200 + number)] for number in range(30)]
    engine.mark(others)
    while len(records(tmp_path)) < blocks + 3:
        time.sleep(0.001)
    engine.kill()
    assert len(records(tmp_path)) < blocks + 30 * 12, "it was through before it was killed"

    again = Pinning(config)
    (state,) = again.pin(pin)
    assert (state.tier, state.blocks) == ("gpu", blocks)
    assert again.computed == 1
    assert again.ask(jobs) == wanted
    assert again.cached == dict.fromkeys(range(4), blocks * 16)
    assert again.unpin("a") == []
    again.kill()
