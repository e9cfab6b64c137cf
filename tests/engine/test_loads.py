"""For whom blocks are fetched, and that they are there when whom they were fetched for starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from copy_parts import Parts, block_name
from disk_parts import BLOCK, GREEDY, LateCopies, LateCopy, ask, disk_config, ids
from millrace_worker.engine import tier_setup
from millrace_worker.engine.engine import Engine
from millrace_worker.engine.load_costs import LoadCosts
from millrace_worker.engine.load_plan import LoadPlan, Segment
from millrace_worker.engine.pace import Pace
from millrace_worker.engine.prefix_cache import ChainHasher
from millrace_worker.engine.sequence import Sequence
from millrace_worker.frames import AddSequence, SequenceParams

#: Prompts without a common beginning, of which a pool of 60 blocks holds three.
MANY = [ids(60 + n % 3, 50 + n) for n in range(24)]
#: So many of them are done before a long answer is.
FEW = 8
#: Blocks of a prompt that interrupts others.
NEED = 18
#: Blocks of all that can be found: the last token is computed.
NUM_BLOCKS = sum((len(prompt) - 1) // BLOCK for prompt in MANY)


@pytest.fixture(autouse=True)
def any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """How quick this machine computes is not known, so fetching is always tried, and steps hold all that they can."""
    monkeypatch.setattr(LoadCosts, "observe_step", lambda *_: None)
    monkeypatch.setattr(Pace, "observe", lambda self, *_: setattr(self, "allowance", self._most))


@pytest.fixture
def copied_in(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Blocks of the pool that are copied to, by copies that take some steps."""
    blocks: list[int] = []

    class Counted(LateCopies):
        def _copy(self, blocks: list[int], host: list[Any], pairs: list[Any], stream: Any) -> Any:
            return LateCopy(blocks, host, pairs, 4)

        def to_device(self, chosen: list[int], host: list[Any]) -> Any:
            blocks.extend(chosen)
            return super().to_device(chosen, host)

    monkeypatch.setattr(tier_setup, "BlockCopies", Counted)
    return blocks


def names(prompts: list[list[int]]) -> list[bytes]:
    """Of all blocks of these prompts that can be found."""
    found: list[bytes] = []
    for prompt in prompts:
        seq, full = Sequence(0, prompt, [], GREEDY), (len(prompt) - 1) // BLOCK
        ChainHasher(BLOCK).extend(seq, full)
        found += seq.block_hashes
    return found


def kept(model: Path, directory: Path | None, **settings: Any) -> tuple[Engine, list[list[int]]]:
    """An engine with blocks of MANY on the disk alone, or without `directory` in host memory; and answers to them."""
    gb = 0.01 if directory is None else 0
    engine = Engine(disk_config(model, directory, cpu_cache_gb=gb, **settings))
    answers = ask(engine, MANY)
    assert ask(engine, MANY) == answers
    tier = "cpu" if directory is None else "disk"
    assert engine.scheduler.tier.switches.wait_for(tier, names(MANY), 10)  # type: ignore[attr-defined]
    engine.reset_prefix_cache()
    return engine, answers


def run(engine: Engine) -> tuple[list[list[int]], int]:
    """Answers by seq_id, and for how many sequences blocks were on their way at the same time."""
    answers: dict[int, list[int]] = {}
    loads, most = engine.scheduler.tier._loads, 0  # type: ignore[attr-defined]
    while engine.has_work:
        for number, tokens in engine.advance().tokens:
            answers.setdefault(number, []).extend(tokens)
        engine.scheduler.check_integrity()
        most = max(most, len(loads._loads) + len(loads._inward))
        engine.tend()
    return [answers[number] for number in sorted(answers)], most


@pytest.mark.parametrize("tier", ["cpu", "disk"])
def test_what_is_fetched_is_there_when_its_sequence_starts(
    model: Path, tmp_path: Path, copied_in: list[int], tier: str
) -> None:
    """There are rows for all of them, but blocks for three."""
    engine, answers = kept(model, tmp_path if tier == "disk" else None, blocks=60, max_num_seqs=24)
    before = engine.cache_stats.hit_tokens.get(tier, 0)
    copied_in.clear()
    for number, prompt in enumerate(MANY):
        engine.add(AddSequence(number, prompt, [], GREEDY, priority=1))
    found, most = run(engine)
    assert found == answers
    assert engine.cache_stats.hit_tokens[tier] - before == NUM_BLOCKS * BLOCK
    assert len(copied_in) == NUM_BLOCKS
    # Beside each other all the same.
    assert 1 < most < 5
    engine.close()


def test_no_more_is_fetched_than_there_are_rows_to_be_had(model: Path, copied_in: list[int]) -> None:
    """There are blocks for all of them, but one row, beside seven that are taken for long."""
    engine, answers = kept(model, None, blocks=800)
    before = engine.cache_stats.cpu_hit_tokens
    for number in range(len(MANY), len(MANY) + 7):
        engine.add(AddSequence(number, ids(3, number), [], SequenceParams(max_tokens=150, temperature=0.0)))
    engine.step()
    copied_in.clear()
    for number, prompt in enumerate(MANY[:FEW]):
        engine.add(AddSequence(number, prompt, [], GREEDY, priority=1))
    found, most = run(engine)
    assert found[:FEW] == answers[:FEW]
    assert engine.cache_stats.cpu_hit_tokens - before == len(names(MANY[:FEW])) * BLOCK
    assert 1 < most <= 1 + 2
    engine.close()


@pytest.mark.parametrize("late", [pytest.param(False, id="at-once"), pytest.param(True, id="late")])
@pytest.mark.parametrize("tier", ["cpu", "disk"])
@pytest.mark.parametrize("overlap", [pytest.param(False, id="one"), pytest.param(True, id="two-in-flight")])
def test_an_urgent_sequence_finds_its_blocks_though_the_pool_is_full(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tier: str, overlap: bool, late: bool
) -> None:
    """Others go for them, as they would for blocks that it computes."""
    if late:
        monkeypatch.setattr(tier_setup, "BlockCopies", LateCopies)
    urgent, batch = ids(NEED * BLOCK - 1, 90), MANY[:3]
    long = SequenceParams(max_tokens=18, temperature=0.0)
    alone = Engine(disk_config(model, None, blocks=500, enable_prefix_caching=False))
    wanted = ask(alone, [urgent, *batch], long)
    directory = tmp_path if tier == "disk" else None
    engine = Engine(
        disk_config(model, directory, blocks=64, cpu_cache_gb=0 if directory else 0.01),
        overlap=overlap,
    )
    for _ in range(2):
        ask(engine, [urgent])
    assert engine.scheduler.tier.switches.wait_for(tier, names([urgent]), 10)  # type: ignore[attr-defined]
    # The first half is on the device, unused for longer than anything else.
    half = NEED // 2
    engine.reset_prefix_cache()
    ask(engine, [urgent[: half * BLOCK + 1]])
    before = engine.cache_stats.hit_tokens
    for number, prompt in enumerate(batch, start=1):
        engine.add(AddSequence(number, prompt, [], long, priority=1))
    answers: dict[int, list[int]] = {}
    is_full = False
    while engine.has_work:
        if not is_full and len(engine.scheduler.running) == 3 and engine.scheduler.pool.num_free < NEED:
            is_full = True
            engine.add(AddSequence(0, urgent, [], long))
        for number, tokens in engine.step().tokens:
            answers.setdefault(number, []).extend(tokens)
        engine.scheduler.check_integrity()
    assert is_full
    assert [answers[number] for number in range(4)] == wanted
    assert engine.scheduler.num_preemptions > 0
    found = {name: tokens - before.get(name, 0) for name, tokens in engine.cache_stats.hit_tokens.items()}
    assert found == {"gpu": half * BLOCK, tier: (NEED - 1 - half) * BLOCK}
    engine.close()


def test_who_goes_before_there_is_room_leaves_nothing() -> None:
    parts = Parts()
    slots = parts.host.take(2)
    for slot, name in zip(slots, parts.seq.block_hashes, strict=True):
        parts.host.put(slot, name)
    parts.host.release(slots)
    taken = parts.pool.allocate(3)
    plan = LoadPlan([Segment(parts.host, 2)])
    for _ in range(2):
        parts.loads.begin(parts.seq, 0, plan, block_name)
        assert parts.loads.lacks_room(parts.seq)
        assert (list(parts.loads.held_slots), parts.loads.ahead.up_to(0)) == ([slots], (1, 3))
        parts.loads.gone(parts.seq)
        assert not parts.loads.lacks_room(parts.seq)
        assert not parts.loads.is_loading(parts.first)
        assert (list(parts.loads.held_slots), parts.loads.ahead.up_to(0)) == ([], (0, 0))
    parts.loads.begin(parts.seq, 0, plan, block_name)
    parts.pool.release(taken)
    parts.loads.place(parts.seq)
    assert [len(table) for table in parts.loads.held] == [2]
    parts.loads.finish_copies()
    assert all(parts.pool.lookup(name) is not None for name in parts.seq.block_hashes)
    assert not list(parts.loads.held_slots)
