"""Tiers below a CUDA device: copies beside steps, in both directions, change no answer."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from disk_parts import ask
from greedy import VOCABULARY, greedy_answers, save
from millrace_worker.config import EngineConfig
from millrace_worker.engine.block_copies import BlockCopies
from millrace_worker.engine.engine import Engine
from millrace_worker.engine.host_arena import HostArena, pin_for
from millrace_worker.engine.load_costs import LoadCosts
from millrace_worker.engine.side_by_side import side_by_side
from millrace_worker.frames import AddSequence, SequenceParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MAX_TOKENS = 12


def behind_heads(seed: int, *, heads: int, count: int) -> list[list[int]]:
    """Prompts that begin with one of a few long beginnings."""
    draw = random.Random(seed)
    beginnings = [[draw.randrange(4, VOCABULARY) for _ in range(96)] for _ in range(heads)]
    return [
        [*draw.choice(beginnings), *(draw.randrange(4, VOCABULARY) for _ in range(1 + i % 30))] for i in range(count)
    ]


def make_engine(directory: Path, eager: bool, kv_bytes: int, **settings: Any) -> Engine:
    values: dict[str, Any] = {
        "model": str(directory),
        "device": "cuda",
        "dtype": "float32",
        "max_num_seqs": 24,
        "max_num_batched_tokens": 96,
        "max_model_len": 200,
        "kv_cache_memory_bytes": kv_bytes,
        "enforce_eager": eager,
    }
    return Engine(EngineConfig(**values, **settings))


@pytest.mark.parametrize("eager", [pytest.param(True, id="eager"), pytest.param(False, id="graphs")])
@pytest.mark.parametrize("megabytes", [pytest.param(64, id="roomy"), pytest.param(0.5, id="preempting")])
@pytest.mark.parametrize("cpu_gb", [pytest.param(0.0, id="disk"), pytest.param(0.002, id="cpu-and-disk")])
def test_restarts_change_no_answer(eager: bool, megabytes: float, cpu_gb: float, tmp_path: Path) -> None:
    directory = save("llama3-tied", tmp_path)
    asked = behind_heads(1, heads=4, count=64)
    wanted = greedy_answers(directory, asked, MAX_TOKENS, eos=None)
    for start in range(3):
        directories = {"disk_cache_dir": str(tmp_path / "cache"), "cpu_cache_gb": cpu_gb}
        engine = make_engine(directory, eager, int(megabytes * 2**20), **directories)
        answers = ask(engine, asked, SequenceParams(max_tokens=MAX_TOKENS, temperature=0.0))
        engine.close()
        assert answers == wanted, f"start {start}"
        assert engine.cache_stats.written_blocks + start > 0
        assert start == 0 or engine.cache_stats.disk_hit_tokens > 0


def test_copies_come_after_the_steps_launched_before_them() -> None:
    """What a long-running kernel writes is what is copied out, and what it reads is not overwritten."""
    cache = torch.zeros((8, 2, 1024, 256), device="cuda")
    copies = BlockCopies(cache)
    for value in range(1, 6):
        torch.cuda._sleep(20_000_000)
        cache[3].fill_(value)
        out = copies.to_host([3], copies.new_buffers(1))
        torch.cuda._sleep(20_000_000)
        seen = cache[3].clone()  # must not see what comes in below
        inward = copies.to_device([3], [torch.full_like(out.host[0], 255).pin_memory()])
        inward.wait()
        inward.keep_before_steps()
        assert out.is_done
        assert out.host[0].view(torch.float32).unique().tolist() == [value]
        assert seen.unique().tolist() == [value]
        assert cache[3].view(torch.uint8).unique().tolist() == [255]
        assert cache[2].unique().tolist() == cache[4].unique().tolist() == [0.0]


@pytest.mark.parametrize("ordered", [pytest.param(True, id="ordered"), pytest.param(False, id="control")])
def test_what_a_preempted_sequence_had_is_not_overwritten_before_it_is_copied(ordered: bool) -> None:
    """Nobody holds its blocks; the control leaves out what makes later steps wait."""
    cache = torch.zeros((8, 2, 1024, 256), device="cuda")
    copies = BlockCopies(cache)
    buffers = copies.new_buffers(1)
    cache[3].fill_(5)
    torch.cuda.synchronize()
    with torch.cuda.stream(copies._out):
        torch.cuda._sleep(200_000_000)  # the copy engine is late
    out = copies.to_host([3], buffers)
    if ordered:
        out.keep_before_steps()
    cache[3].fill_(6)
    torch.cuda.synchronize()
    assert buffers[0].view(torch.float32).unique().tolist() == [5 if ordered else 6]


def test_neighbours_are_copied_together_and_rates_are_measured() -> None:
    cache = torch.arange(64, dtype=torch.float32, device="cuda")[:, None].repeat(1, 1 << 18)
    copies = BlockCopies(cache)
    arena = HostArena(32 * copies.block_bytes, copies.block_bytes, pin=pin_for(cache.device))
    arena.start()
    end = time.monotonic() + 60
    while arena.num_slots < 32:
        assert time.monotonic() < end
        time.sleep(0.01)
    blocks = [*range(20, 4, -1), 40, 42]
    slots = side_by_side(blocks, list(range(18)))
    host = [arena.slot(slot) for slot in slots]
    assert all(buffer.is_pinned() for buffer in host)
    out = copies.to_host(blocks, host)
    out.wait()
    assert out.seconds > 0
    assert [buffer.view(torch.float32).unique().item() for buffer in host] == blocks
    cache.zero_()
    inward = copies.to_device(blocks, host)
    inward.wait()
    assert inward.seconds > 0
    assert [cache[block].unique().item() for block in blocks] == blocks


@pytest.mark.parametrize("eager", [pytest.param(True, id="eager"), pytest.param(False, id="graphs")])
def test_hits_in_host_memory_and_swaps_change_no_answer(
    eager: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So small a model is computed in no time; fetching is tried as long as that is not known.
    monkeypatch.setattr(LoadCosts, "observe_step", lambda *_: None)
    directory = save("llama3-tied", tmp_path)
    asked = behind_heads(2, heads=3, count=48)
    wanted = greedy_answers(directory, asked, MAX_TOKENS, eos=None)
    engine = make_engine(directory, eager, 2**18, cpu_cache_gb=0.05)
    for turn in range(3):
        engine.reset_prefix_cache()
        answers: list[list[int]] = [[] for _ in asked]
        params = SequenceParams(max_tokens=MAX_TOKENS, temperature=0.0)
        step = 0
        while step < 30 or engine.has_work:
            # Urgent ones come while the others have filled the cache.
            for i in {0: range(1, len(asked), 2), 30: range(0, len(asked), 2)}.get(step, ()):
                engine.add(AddSequence(i, asked[i], [], params, priority=i % 2))
            for seq_id, tokens in engine.step().tokens:
                answers[seq_id] += tokens
            engine.scheduler.check_integrity()
            step += 1
        assert answers == wanted, f"turn {turn}"
    assert engine.scheduler.num_preemptions > 0
    assert engine.cache_stats.cpu_hit_tokens > 0
    assert engine.cache_stats.swapped_blocks > 0
    engine.close()
