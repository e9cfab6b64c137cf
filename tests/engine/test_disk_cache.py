"""The KV of prompts outlives the engine: after a restart it is read back, and answers are those computed cold."""

from __future__ import annotations

import json
import random
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from disk_parts import (
    BLOCK,
    GREEDY,
    PROMPTS,
    SHARED,
    SYSTEM,
    LateCopies,
    ask,
    disk_config,
    ids,
    random_prompts,
    random_traffic,
    records,
)
from millrace_worker.engine import disk_tier, tier_setup
from millrace_worker.engine.disk_requests import TierLimits
from millrace_worker.engine.engine import Engine
from millrace_worker.engine.prefix_cache import ROOT, block_hash
from millrace_worker.frames import AddSequence, SequenceParams


@pytest.fixture
def stored(model: Path, cold: list[list[int]], tmp_path: Path) -> Path:
    """A directory with the blocks of SYSTEM."""
    engine = Engine(disk_config(model, tmp_path / "cache"))
    assert ask(engine, PROMPTS) == cold
    engine.close()
    assert engine.cache_stats.written_blocks == len(records(tmp_path / "cache")) == SHARED
    return tmp_path / "cache"


def record(directory: Path, number: int) -> Path:
    """That of a block of SYSTEM."""
    name = ROOT
    for start in range(0, (number + 1) * BLOCK, BLOCK):
        name = block_hash(name, SYSTEM[start : start + BLOCK])
    (path,) = directory.glob(f"*/*/*/{name.hex()}.kv")
    return path


@pytest.mark.parametrize("overlap", [pytest.param(False, id="one"), pytest.param(True, id="two-in-flight")])
def test_answers_after_a_restart_are_those_computed_cold(
    model: Path, cold: list[list[int]], stored: Path, overlap: bool
) -> None:
    engine = Engine(disk_config(model, stored), overlap=overlap)
    assert engine.cache_stats.disk_blocks == SHARED
    assert ask(engine, PROMPTS) == cold
    stats = engine.cache_stats
    # The first one's are read; the others find them in the pool.
    assert (stats.loads, stats.disk_hit_tokens, stats.read_blocks) == ({"disk": 1}, len(SYSTEM), SHARED)
    assert stats.gpu_hit_tokens == len(SYSTEM) * 4
    engine.close()


def test_tenants_do_not_find_each_others_blocks(model: Path, cold: list[list[int]], stored: Path) -> None:
    """The directory holds blocks of no tenant; another's are named and kept apart, over a restart, too."""
    salted = SequenceParams(max_tokens=8, temperature=0.0, cache_salt="acme:")
    for found in (0, len(SYSTEM)):
        engine = Engine(disk_config(model, stored))
        assert ask(engine, PROMPTS, salted) == cold
        assert engine.cache_stats.disk_hit_tokens == found
        engine.close()
    assert len(records(stored)) == 2 * SHARED


def test_a_prompt_that_comes_once_is_not_written_and_no_answer_is(model: Path, tmp_path: Path) -> None:
    engine = Engine(disk_config(model, tmp_path))
    prompt = ids(20, 7)
    (answer,) = ask(engine, [prompt], SequenceParams(max_tokens=20, temperature=0.0))
    assert records(tmp_path) == []
    for _ in range(2):
        ask(engine, [prompt], SequenceParams(max_tokens=20, temperature=0.0))
    engine.close()
    # The block with the last token is computed each time, so nobody looks for it.
    assert len(records(tmp_path)) == 4
    assert len(answer) == 20


@pytest.mark.parametrize(
    ("byte", "reason"),
    [(2, "format"), (50, "header_checksum"), (125, "header_checksum"), (-9, "payload_checksum")],
    ids=["magic", "chain-hash", "token-ids", "payload"],
)
def test_after_a_flipped_bit_the_good_head_is_used_and_the_record_is_gone(
    model: Path, cold: list[list[int]], stored: Path, byte: int, reason: str
) -> None:
    bad = record(stored, 6)
    data = bytearray(bad.read_bytes())
    data[byte] ^= 4
    bad.write_bytes(data)
    engine = Engine(disk_config(model, stored))
    assert ask(engine, PROMPTS[:1]) == cold[:1]
    stats = engine.cache_stats
    assert stats.misses == {reason: 1}
    assert stats.disk_hit_tokens == 6 * BLOCK
    assert stats.disk_blocks == SHARED - 1
    assert not bad.exists()
    engine.close()


def test_a_whole_record_in_the_place_of_another_is_found(model: Path, cold: list[list[int]], stored: Path) -> None:
    shutil.copy(record(stored, 3), record(stored, 0))
    engine = Engine(disk_config(model, stored))
    assert ask(engine, PROMPTS[:1]) == cold[:1]
    assert engine.cache_stats.misses == {"chain_hash": 1}
    assert engine.cache_stats.disk_hit_tokens == 0
    engine.close()


def change_config(model: Path, **changes: object) -> None:
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("settings", "config", "changed"),
    [
        ({}, {"rope_theta": 5000.0, "rope_parameters": None}, ("config",)),
        ({"dtype": "bfloat16"}, {}, ("dtype", "kv_dtype")),
        ({"load_format": "dummy"}, {}, ("weights",)),
    ],
    ids=["config", "dtype", "weights"],
)
def test_another_engine_does_not_read_the_blocks(
    model: Path,
    stored: Path,
    tmp_path: Path,
    settings: dict[str, Any],
    config: dict[str, Any],
    changed: tuple[str, ...],
) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    change_config(other, **config)
    wanted = ask(Engine(disk_config(other, None, enable_prefix_caching=False, **settings)), PROMPTS[:1])
    engine = Engine(disk_config(other, stored, **settings))
    assert ask(engine, PROMPTS[:1]) == wanted
    stats = engine.cache_stats
    assert (stats.disk_hit_tokens, stats.misses, stats.changed_identity) == (0, {"fingerprint": 1}, changed)
    engine.close()


def test_a_directory_in_use_is_used_once_it_is_free(
    model: Path, cold: list[list[int]], stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a new worker starts while the old one drains."""
    monkeypatch.setattr(disk_tier, "TierLimits", partial(TierLimits, lock_seconds=0.02))
    in_use = Engine(disk_config(model, stored))
    engine = Engine(disk_config(model, stored))
    never = Engine(disk_config(model, stored))
    assert ask(engine, PROMPTS[:1]) == cold[:1]
    assert engine.cache_stats.misses == {"closed": 1}
    assert (in_use.cache_stats.open, engine.cache_stats.open) == ({"disk": 1}, {"disk": 0})
    never.close()
    in_use.close()
    end = time.monotonic() + 10
    while engine.cache_stats.disk_blocks == 0:
        assert time.monotonic() < end
        time.sleep(0.01)
    engine.reset_prefix_cache()
    assert ask(engine, PROMPTS) == cold
    assert engine.cache_stats.disk_hit_tokens == len(SYSTEM)
    assert engine.cache_stats.open == {"disk": 1}
    engine.close()


def test_what_is_slower_to_read_than_to_compute_is_computed(model: Path, cold: list[list[int]], stored: Path) -> None:
    engine = Engine(disk_config(model, stored))
    costs = engine.scheduler.tier.costs  # type: ignore[union-attr]
    costs.bytes_per_second["disk"], costs.tokens_per_second = 1000.0, 1000.0
    assert ask(engine, PROMPTS) == cold
    stats = engine.cache_stats
    assert (stats.loads, stats.recomputes, stats.disk_hit_tokens) == ({}, {"disk": 1}, 0)
    assert stats.misses["slower"] == 1
    engine.close()


def test_a_sequence_that_is_given_up_while_it_is_read_leaves_nothing(
    model: Path, cold: list[list[int]], stored: Path
) -> None:
    engine = Engine(disk_config(model, stored))
    engine.add(AddSequence(9, PROMPTS[0], [], GREEDY))
    engine.scheduler.schedule()
    engine.abort(9)
    assert not engine.has_work
    assert ask(engine, PROMPTS) == cold
    assert not list(engine.scheduler.tier.held)
    engine.close()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("overlap", [pytest.param(False, id="one"), pytest.param(True, id="two-in-flight")])
def test_late_copies_and_a_small_pool_change_no_answer(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, overlap: bool
) -> None:
    """Copies that end whenever they like, as on a GPU, beside preemption, aborts and restarts."""
    monkeypatch.setattr(tier_setup, "BlockCopies", LateCopies)
    draw = random.Random(seed)
    prompts = random_prompts(draw)
    wanted = ask(Engine(disk_config(model, None, enable_prefix_caching=False)), prompts)
    read = 0
    for _ in range(3):
        engine = Engine(disk_config(model, tmp_path, blocks=50, max_num_batched_tokens=48), overlap=overlap)
        assert random_traffic(engine, prompts, draw) == wanted
        assert not list(engine.scheduler.tier.held)
        read += engine.cache_stats.read_blocks
        engine.close()
    assert read > 0
