"""Host memory that somebody still reads or fills is not given to another block; each test has its control, which
leaves out what keeps it, and in which the wrong bytes arrive.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from copy_parts import ANOTHER, BLOCK_BYTES, MINE, Parts, block_name, open_disk
from millrace_worker.engine import disk_readers, disk_tier
from millrace_worker.engine.disk_requests import Reading
from millrace_worker.engine.disk_tier import DiskTier
from millrace_worker.engine.kv_record import BlockName, read_record, write_record
from millrace_worker.engine.load_plan import LoadPlan, Segment

held_or_not = pytest.mark.parametrize("held", [pytest.param(True, id="held"), pytest.param(False, id="control")])


def put_on_disk(disk: DiskTier, name: BlockName) -> None:
    assert disk.index is not None
    path = disk.index.path(name.chain_hash)
    path.parent.mkdir(parents=True)
    write_record(path, name, memoryview(bytearray([MINE] * BLOCK_BYTES)))
    disk.index.reserve(4096, [])
    disk.index.add(name.chain_hash, 4096)


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


def test_room_for_what_is_read_is_not_made_of_what_comes_after_it(tmp_path: Path) -> None:
    """The first block is on the disk, the second in host memory, which is full, and is what was unused for longest."""
    disk = open_disk(tmp_path)
    parts = Parts(disk)
    put_on_disk(disk, block_name(parts.seq, 0))
    for name in (parts.seq.block_hashes[1], b"another"):
        (slot,) = parts.host.take(1)
        parts.host.slot(slot).fill_(MINE + 1)
        parts.host.put(slot, name)
        parts.host.release([slot])
    parts.loads.begin(parts.seq, 0, LoadPlan([Segment(disk, 1), Segment(parts.host, 1)]), block_name)
    end = time.monotonic() + 10
    while not hasattr(parts.copies, "last"):
        assert time.monotonic() < end
        parts.loads.poll()
    parts.copies.last.wait()
    parts.loads.poll()
    blocks = [parts.pool.lookup(name) for name in parts.seq.block_hashes]
    assert [parts.memory[block].unique().tolist() for block in blocks] == [[MINE], [MINE + 1]]
    assert [parts.host.has(name) for name in (*parts.seq.block_hashes, b"another")] == [True, True, False]
    disk.close()


@held_or_not
def test_a_slot_that_a_late_read_still_fills(held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = open_disk(tmp_path, read_seconds=0.3)
    parts = Parts(disk)
    put_on_disk(disk, block_name(parts.seq, 0))
    go_on, done = threading.Event(), threading.Event()

    def read(*arguments: Any) -> None:
        go_on.wait(30)
        read_record(*arguments)
        done.set()

    monkeypatch.setattr(disk_readers, "read_record", read)
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
    end = time.monotonic() + 10
    while list(parts.loads.held_slots):  # a read is over a moment after its last byte
        assert time.monotonic() < end
        parts.loads.poll()


class EndsBetween(Reading):
    """Its thread ends it once `looks` is 1: between that look and the next."""

    looks = 10**9

    @property
    def is_done(self) -> bool:  # type: ignore[override]
        self.looks -= 1
        return self.looks < 0

    @is_done.setter
    def is_done(self, done: bool) -> None:
        pass


def test_slots_of_a_read_that_ends_while_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = open_disk(tmp_path, read_seconds=0.01)
    parts = Parts(disk)
    reading = EndsBetween([block_name(parts.seq, 0)])
    monkeypatch.setattr(disk, "read", lambda names, into: reading)
    parts.loads.begin(parts.seq, 0, LoadPlan([Segment(disk, 1)]), block_name)
    end = time.monotonic() + 10
    while parts.loads.is_held_back(parts.seq):
        assert time.monotonic() < end
        parts.loads.poll()
    assert len(list(parts.loads.held_slots)) == 1
    reading.looks = 1
    parts.loads.poll()
    parts.loads.poll()
    assert not list(parts.loads.held_slots)
    parts.host.check_integrity([])
    disk.close()
