"""Host memory that somebody still reads or fills is not given to another block; each test has its control, which
leaves out what keeps it, and in which the wrong bytes arrive.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from disk_parts import LateCopies, LateCopy
from millrace_worker.engine import disk_tier
from millrace_worker.engine.block_pool import BlockPool
from millrace_worker.engine.disk_requests import TierLimits
from millrace_worker.engine.disk_tier import DiskTier
from millrace_worker.engine.fingerprint import Identity
from millrace_worker.engine.host_arena import HostArena
from millrace_worker.engine.host_tier import HostTier
from millrace_worker.engine.keeping import Keeping
from millrace_worker.engine.kv_record import BlockName, read_record, write_record
from millrace_worker.engine.load_costs import LoadCosts
from millrace_worker.engine.load_plan import LoadPlan, Segment
from millrace_worker.engine.loads import Loads
from millrace_worker.engine.prefix_cache import ROOT, ChainHasher
from millrace_worker.engine.sequence import Sequence
from millrace_worker.frames import SequenceParams

BLOCK, BLOCK_BYTES = 4, 64
IDENTITY = Identity(
    weights="w", config="c", dtype="float32", kv_dtype="float32", layout_version=1, kernels="cpu 1", block_size=BLOCK
)
held_or_not = pytest.mark.parametrize("held", [pytest.param(True, id="held"), pytest.param(False, id="control")])
MINE, ANOTHER = 7, 9


class WhenTold(LateCopies):
    """Copies run when the test says so."""

    def _copy(self, blocks: list[int], host: list[torch.Tensor], pairs: list[Any], stream: Any) -> Any:
        self.last = LateCopy(blocks, host, pairs, 10**9)
        return self.last


class Parts:
    """A pool of 4 blocks of one prompt's, and host memory for 2."""

    def __init__(self, disk: DiskTier | None = None) -> None:
        self.memory = torch.zeros((4, BLOCK_BYTES), dtype=torch.uint8)
        self.pool, self.copies = BlockPool(4), WhenTold(self.memory)
        self.host = HostTier(HostArena(2 * BLOCK_BYTES, BLOCK_BYTES))
        self.host.start()
        self.seq = Sequence(1, list(range(10, 19)), [], SequenceParams(max_tokens=1))
        ChainHasher(BLOCK).extend(self.seq, 2)
        costs, both = LoadCosts(), {"host": self.host, "disk": disk}
        self.loads = Loads(self.pool, self.copies, costs, **both, misses=Counter())
        self.keeping = Keeping(self.pool, self.copies, **both, name=block_name, unwritten=Counter())

    @property
    def first(self) -> bytes:
        return self.seq.block_hashes[0]

    def others_come(self) -> list[int]:
        """As much of the host memory as can be had is given to another's blocks."""
        slots = self.host.take(2)
        for slot in slots:
            self.host.slot(slot).fill_(ANOTHER)
        return slots

    def forget_references(self) -> None:
        """From now on slots are given away as if nobody held them."""
        slots = self.host._slots
        slots.release([slot for slot in range(2) for _ in range(slots.references(slot))])
        slots.share = slots.release = lambda blocks: None  # type: ignore[method-assign, assignment]


def block_name(seq: Sequence, number: int) -> BlockName:
    tokens = tuple(seq.tokens[number * BLOCK : (number + 1) * BLOCK])
    parent = seq.block_hashes[number - 1] if number else ROOT
    return BlockName(IDENTITY.fingerprint, seq.block_hashes[number], parent, tokens)


def open_disk(directory: Path, **limits: float) -> DiskTier:
    tier = DiskTier(
        directory,
        10**6,
        block_size=BLOCK,
        block_bytes=BLOCK_BYTES,
        new_buffer=lambda: torch.empty(BLOCK_BYTES, dtype=torch.uint8),
        limits=TierLimits(**limits),  # type: ignore[arg-type]
    )
    tier.start(lambda: IDENTITY)
    return tier


@held_or_not
def test_a_slot_that_is_copied_from(held: bool) -> None:
    parts = Parts()
    (slot,) = parts.host.take(1)
    parts.host.slot(slot).fill_(MINE)
    parts.host.put(slot, parts.first)
    parts.host.release([slot])
    if not held:
        parts.forget_references()
    parts.loads.begin(parts.seq, 0, LoadPlan([Segment(parts.host, 1)]), block_name)
    parts.others_come()
    parts.copies.last.wait()
    parts.loads.poll()
    block = parts.pool.lookup(parts.first)
    assert parts.memory[block].unique().tolist() == [MINE if held else ANOTHER]


@held_or_not
def test_a_slot_that_is_copied_into(held: bool) -> None:
    parts = Parts()
    parts.seq.block_table = parts.pool.allocate(1)
    parts.memory[parts.seq.block_table] = MINE
    parts.keeping.keep(parts.seq, [0])
    parts.keeping.flush()
    if not held:
        parts.forget_references()
    others = parts.others_come()
    parts.copies.last.wait()
    assert (MINE in [parts.host.slot(slot)[0].item() for slot in others]) == (not held)


@held_or_not
def test_a_slot_that_is_written_to_the_disk(held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, begun = threading.Event(), threading.Event()

    def write(path: Path, name: BlockName, payload: memoryview) -> None:
        begun.set()
        go_on.wait(30)
        write_record(path, name, payload)

    monkeypatch.setattr(disk_tier, "write_record", write)
    disk = open_disk(tmp_path)
    parts = Parts(disk)
    parts.seq.block_table = parts.pool.allocate(1)
    parts.memory[parts.seq.block_table] = MINE
    parts.keeping.keep(parts.seq, [0])
    parts.keeping.flush()
    parts.copies.last.wait()
    parts.keeping.take_copies()
    assert begun.wait(10)
    if not held:
        parts.forget_references()
    parts.others_come()
    go_on.set()
    disk.close()
    assert disk.index is not None
    found = bytearray(BLOCK_BYTES)
    read_record(disk.index.path(parts.first), block_name(parts.seq, 0), memoryview(found))
    assert set(found) == {MINE if held else ANOTHER}
    parts.keeping.take_copies()
    assert not list(parts.keeping.held_slots)


@held_or_not
def test_a_slot_that_a_late_read_still_fills(held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = open_disk(tmp_path, read_seconds=0.01)
    parts = Parts(disk)
    name = block_name(parts.seq, 0)
    assert disk.index is not None
    path = disk.index.path(parts.first)
    path.parent.mkdir(parents=True)
    write_record(path, name, memoryview(bytearray([MINE] * BLOCK_BYTES)))
    disk.index.reserve(4096, [])
    disk.index.add(parts.first, 4096)
    go_on, done = threading.Event(), threading.Event()

    def read(*arguments: Any) -> None:
        go_on.wait(30)
        read_record(*arguments)
        done.set()

    monkeypatch.setattr(disk_tier, "read_record", read)
    parts.loads.begin(parts.seq, 0, LoadPlan([Segment(disk, 1)]), block_name)
    while parts.loads.is_held_back(parts.seq):
        parts.loads.poll()
        time.sleep(0.001)
    if not held:
        parts.forget_references()
    others = parts.others_come()
    go_on.set()
    assert done.wait(10)
    assert (MINE in [parts.host.slot(slot)[0].item() for slot in others]) == (not held)
    disk.close()
    parts.loads.poll()
    assert not list(parts.loads.held_slots)
