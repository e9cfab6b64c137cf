"""The CPU tier: what the pool had to give away is copied back from host memory, and answers stay the same."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from disk_parts import (
    PROMPTS,
    SHARED,
    SYSTEM,
    LateCopies,
    LateCopy,
    ask,
    disk_config,
    ids,
    random_prompts,
    random_traffic,
    records,
)
from millrace_worker.engine import tier_setup
from millrace_worker.engine.engine import Engine
from millrace_worker.engine.load_costs import LoadCosts
from millrace_worker.errors import ConfigError
from millrace_worker.frames import AddSequence, SequenceParams

#: Prompts without a common beginning: three of them fill a pool of 60 blocks.
BATCH = [ids(60 + n, 50 + n) for n in range(3)]
LONG = SequenceParams(max_tokens=20, temperature=0.0)
URGENT = [ids(70 + n, 60 + n) for n in range(3)]


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """How quick this machine computes is not known, so fetching is always tried."""
    monkeypatch.setattr(LoadCosts, "observe_step", lambda *_: None)


@pytest.fixture(scope="module")
def undisturbed(model: Path) -> list[list[int]]:
    """Answers to BATCH and URGENT, without any cache or preemption."""
    return ask(Engine(disk_config(model, None, blocks=500, enable_prefix_caching=False)), BATCH + URGENT, LONG)


@pytest.mark.parametrize("overlap", [pytest.param(False, id="one"), pytest.param(True, id="two-in-flight")])
def test_what_the_pool_gave_away_is_found_in_host_memory(model: Path, cold: list[list[int]], overlap: bool) -> None:
    engine = Engine(disk_config(model, None, cpu_cache_gb=0.01), overlap=overlap)
    assert ask(engine, PROMPTS) == cold
    assert engine.cache_stats.blocks["cpu"] == SHARED
    engine.reset_prefix_cache()
    assert ask(engine, PROMPTS) == cold
    stats = engine.cache_stats
    # The first one's are copied back; the others find them in the pool.
    assert stats.hit_tokens == {"cpu": len(SYSTEM), "gpu": len(SYSTEM) * 8}
    assert stats.loads == {"cpu": 1}
    engine.close()


def test_an_engine_is_ready_before_its_host_memory_is_pinned(
    model: Path, cold: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def pin(memory: Any) -> None:
        go_on.wait(30)

    monkeypatch.setattr(tier_setup, "pin_for", lambda device: pin)
    engine = Engine(disk_config(model, None, cpu_cache_gb=0.01))
    assert ask(engine, PROMPTS) == cold
    assert (engine.cache_stats.blocks["cpu"], engine.cache_stats.open) == (0, {"cpu": 0})
    assert engine.cache_stats.unwritten == {"no_room": SHARED}
    go_on.set()
    end = time.monotonic() + 10
    while engine.cache_stats.blocks["cpu"] < SHARED:
        assert time.monotonic() < end
        assert ask(engine, PROMPTS) == cold
    assert engine.cache_stats.open == {"cpu": 1}
    engine.close()


def test_host_memory_that_cannot_be_pinned_is_not_open(
    model: Path, cold: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pin(memory: Any) -> None:
        raise RuntimeError("cudaHostRegister: error 2")

    monkeypatch.setattr(tier_setup, "pin_for", lambda device: pin)
    engine = Engine(disk_config(model, None, cpu_cache_gb=0.01))
    assert engine.scheduler.tier.switches.wait_open(10) == []  # type: ignore[attr-defined]
    assert ask(engine, PROMPTS) == cold
    assert engine.cache_stats.open == {"cpu": 0}
    engine.close()


def test_blocks_of_the_disk_stay_in_host_memory_and_one_copy_serves_both(
    model: Path, cold: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []

    class Counted(LateCopies):
        def to_host(self, blocks: list[int], host: list[Any]) -> Any:
            copied.extend(blocks)
            return super().to_host(blocks, host)

    monkeypatch.setattr(tier_setup, "BlockCopies", Counted)
    config = disk_config(model, tmp_path, cpu_cache_gb=0.01)
    engine = Engine(config)
    assert ask(engine, PROMPTS) == cold
    engine.close()
    assert len(copied) == len(records(tmp_path)) == SHARED
    engine = Engine(config)
    assert ask(engine, PROMPTS) == cold
    assert len(copied) == SHARED
    engine.reset_prefix_cache()
    assert ask(engine, PROMPTS) == cold
    stats = engine.cache_stats
    assert (stats.disk_hit_tokens, stats.cpu_hit_tokens, stats.read_blocks) == (len(SYSTEM), len(SYSTEM), SHARED)
    engine.close()


def test_what_is_in_host_memory_already_is_written_from_there(
    model: Path, cold: list[list[int]], tmp_path: Path
) -> None:
    """The disk could not be used when the blocks were copied out."""
    engine = Engine(disk_config(model, tmp_path, cpu_cache_gb=0.01))
    disk = engine.scheduler.tier._disk  # type: ignore[attr-defined]
    disk._no_writes_until = float("inf")
    assert ask(engine, PROMPTS) == cold
    assert (engine.cache_stats.blocks["cpu"], engine.cache_stats.disk_blocks) == (SHARED, 0)
    disk._no_writes_until = 0.0
    assert ask(engine, PROMPTS) == cold
    engine.close()
    # The second time what comes after SYSTEM was there, too, and is one of those that came again.
    assert len(records(tmp_path)) == engine.cache_stats.blocks["cpu"] > SHARED
    again = Engine(disk_config(model, tmp_path))
    assert ask(again, PROMPTS) == cold
    assert again.cache_stats.disk_hit_tokens >= len(SYSTEM)
    again.close()


def interrupted(engine: Engine) -> tuple[list[list[int]], int]:
    """Answers to BATCH, which URGENT interrupts, and to that; and the tokens that were computed for them."""
    answers: list[list[int]] = [[] for _ in BATCH + URGENT]
    tokens = 0
    for number, prompt in enumerate(BATCH):
        engine.add(AddSequence(number, prompt, [], LONG, priority=1))
    for step in range(1000):
        if step == 12:
            for number, prompt in enumerate(URGENT, start=len(BATCH)):
                engine.add(AddSequence(number, prompt, [], LONG))
        output = engine.step()
        tokens += output.batched_tokens
        for number, new in output.tokens:
            answers[number] += new
        engine.scheduler.check_integrity()
        if step > 12 and not engine.has_work:
            return answers, tokens
    raise AssertionError("it does not end")


@pytest.mark.parametrize("late", [pytest.param(False, id="at-once"), pytest.param(True, id="late")])
@pytest.mark.parametrize("overlap", [pytest.param(False, id="one"), pytest.param(True, id="two-in-flight")])
def test_preempted_sequences_find_their_blocks_again(
    model: Path, undisturbed: list[list[int]], monkeypatch: pytest.MonkeyPatch, overlap: bool, late: bool
) -> None:
    if late:
        monkeypatch.setattr(tier_setup, "BlockCopies", LateCopies)
    computed = []
    for gb in (0, 0.01):
        engine = Engine(disk_config(model, None, blocks=60, cpu_cache_gb=gb), overlap=overlap)
        answers, tokens = interrupted(engine)
        assert answers == undisturbed
        assert engine.scheduler.num_preemptions > 0
        computed.append(tokens)
        stats = engine.cache_stats
        engine.close()
    assert stats.swapped_blocks > 0
    assert stats.loads["cpu"] > 0
    assert computed[1] < computed[0]
    # Nothing is held for those that are gone.
    assert engine.scheduler.tier._swaps._held == {}  # type: ignore[attr-defined]


def test_blocks_that_are_reused_before_they_are_copied_out_are_not_what_was_computed(
    model: Path, undisturbed: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above: without the order of steps after copies the answers are wrong."""
    monkeypatch.setattr(tier_setup, "BlockCopies", LateCopies)
    monkeypatch.setattr(LateCopies, "_copy", lambda self, *what: LateCopy(*what[:3], patience=6))
    monkeypatch.setattr(LateCopy, "keep_before_steps", lambda self: None)
    engine = Engine(disk_config(model, None, blocks=60, cpu_cache_gb=0.01), overlap=True)
    engine.scheduler.tier.costs.always_load = True  # type: ignore[attr-defined]
    answers, _ = interrupted(engine)
    assert engine.cache_stats.swapped_blocks > 0
    assert answers != undisturbed


def test_a_swap_that_costs_more_than_computing_is_not_made(model: Path, undisturbed: list[list[int]]) -> None:
    engine = Engine(disk_config(model, None, blocks=60, cpu_cache_gb=0.01))
    costs = engine.scheduler.tier.costs  # type: ignore[attr-defined]
    costs.bytes_per_second["cpu"], costs.tokens_per_second = 1.0, 1000.0
    assert interrupted(engine)[0] == undisturbed
    assert engine.cache_stats.swapped_blocks == 0
    engine.close()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("overlap", [pytest.param(False, id="one"), pytest.param(True, id="two-in-flight")])
def test_late_copies_a_small_pool_and_little_host_memory_change_no_answer(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, overlap: bool
) -> None:
    """Copies that end whenever they like, beside preemption, aborts, restarts and a CPU tier that is always full."""
    monkeypatch.setattr(tier_setup, "BlockCopies", LateCopies)
    draw = random.Random(seed)
    prompts = random_prompts(draw)
    wanted = ask(Engine(disk_config(model, None, enable_prefix_caching=False)), prompts)
    hits: dict[str, int] = {}
    for turn in range(3):
        directory = tmp_path if seed else None
        gb = 25 * 1536 / 1e9
        engine = Engine(
            disk_config(model, directory, blocks=50, max_num_batched_tokens=48, cpu_cache_gb=gb), overlap=overlap
        )
        assert random_traffic(engine, prompts, draw) == wanted, turn
        engine.scheduler.tier.settle()  # the last one may have been given up while it was fetched
        assert not list(engine.scheduler.tier.held)
        stats = engine.cache_stats
        assert stats.blocks["cpu"] <= 25
        for tier, tokens in stats.hit_tokens.items():
            hits[tier] = hits.get(tier, 0) + tokens
        engine.close()
    assert hits["cpu"] > 0
    assert (hits.get("disk", 0) > 0) == (seed > 0)


@pytest.mark.parametrize("flag", ["cpu_cache_gb", "disk_cache_gb"])
def test_a_tier_that_holds_no_block_is_refused(model: Path, tmp_path: Path, flag: str) -> None:
    words = rf"--{flag.replace('_', '-')}=1e-06 holds no block of this model's KV, which takes [\d.e-]+ GB"
    with pytest.raises(ConfigError, match=words):
        Engine(disk_config(model, tmp_path, **{flag: 1e-6}))
