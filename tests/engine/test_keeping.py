"""Blocks leave the pool no faster than steps can bear, and nobody spins while they come in."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from copy_parts import BLOCK, BLOCK_BYTES, IDENTITY, MINE, Parts, block_name
from disk_parts import LateCopies, ask, disk_config, ids
from millrace_worker.engine import keeping, tier_setup
from millrace_worker.engine.disk_tier import DiskTier
from millrace_worker.engine.engine import Engine
from millrace_worker.engine.load_plan import LoadPlan, Segment

PROMPT = ids(120, 3)


def test_a_step_begins_as_much_as_the_time_allows_and_an_idle_engine_all_of_it(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []

    class Counted(LateCopies):
        def to_host(self, blocks: list[int], host: list[object]) -> object:
            begun.append(len(blocks))
            return super().to_host(blocks, host)  # type: ignore[arg-type]

    monkeypatch.setattr(tier_setup, "BlockCopies", Counted)
    monkeypatch.setattr(keeping, "_BYTES_PER_SECOND", 0.0)
    monkeypatch.setattr(keeping, "GROUP_BYTES", 4 * 1536)
    engine = Engine(disk_config(model, None, cpu_cache_gb=0.01))
    for _ in range(2):
        ask(engine, [PROMPT])
    # 29 blocks in groups of 4: one group a step, and what was left when the last step was over at once.
    assert begun == [4] * 7 + [1]
    assert engine.cache_stats.blocks["cpu"] == 29
    engine.close()


def test_slots_of_a_group_that_finds_no_more_memory_are_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = DiskTier(
        *(tmp_path, 10**6),
        block_size=BLOCK,
        block_bytes=BLOCK_BYTES,
        new_buffer=lambda: torch.empty(BLOCK_BYTES, dtype=torch.uint8),
    )
    disk.start(lambda: IDENTITY)
    parts = Parts(disk)
    parts.host.take(1)  # so that one of two blocks needs memory of its own
    parts.seq.block_table = parts.pool.allocate(2)

    def no_memory(count: int) -> list[torch.Tensor]:
        raise RuntimeError("no more host memory")

    monkeypatch.setattr(parts.copies, "new_buffers", no_memory)
    parts.keeping.keep(parts.seq, [0, 1])
    parts.keeping.flush()
    assert len(parts.host.take(2)) == 1
    assert not parts.keeping.is_leaving(parts.first)
    disk.close()


def test_waiting_for_a_copy_alone_takes_the_time_that_it_may(tmp_path: Path) -> None:
    parts = Parts()
    (slot,) = parts.host.take(1)
    parts.host.slot(slot).fill_(MINE)
    parts.host.put(slot, parts.first)
    parts.host.release([slot])
    parts.loads.wait(10.0)  # there is nothing to wait for
    parts.loads.begin(parts.seq, 0, LoadPlan([Segment(parts.host, 1)]), block_name)
    began = time.monotonic()
    parts.loads.wait(0.05)
    assert time.monotonic() - began >= 0.05
    parts.copies.last.wait()
    parts.loads.wait(10.0)
    assert time.monotonic() - began < 9
