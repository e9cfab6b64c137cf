"""How much of a prompt is fetched, and from where: what saves the most time against computing it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch

from millrace_worker.engine.disk_requests import Reading
from millrace_worker.engine.kv_record import BlockName
from millrace_worker.engine.load_costs import LoadCosts
from millrace_worker.engine.load_plan import LoadPlan, plan_load

SIZE = 10
BLOCK_BYTES = 1000


@dataclass
class FakeStore:
    name: str
    numbers: set[int] = field(default_factory=set)
    may_read: bool = True
    read_room: int = 1000
    reading_bytes: int = 0
    record_bytes: int = BLOCK_BYTES

    def has(self, chain_hash: bytes) -> bool:
        return any(chain_hash == block(number) for number in self.numbers)

    def why_not(self, chain_hash: bytes) -> str:
        return f"not on {self.name}"

    def read(self, names: list[BlockName], into: list[torch.Tensor | None]) -> Reading:
        raise NotImplementedError

    def give_up(self, reading: Reading, *, leave_alone: bool = True) -> None:
        raise NotImplementedError


def block(number: int) -> bytes:
    return hashlib.sha256(bytes([number])).digest()


def costs(**blocks_per_second: float) -> LoadCosts:
    """Of tiers; the device computes 100 blocks a second."""
    found = LoadCosts()
    found.tokens_per_second = 100.0 * SIZE
    for tier, rate in blocks_per_second.items():
        found.bytes_per_second[tier] = rate * BLOCK_BYTES
    return found


def plan(count: int, stores: list[FakeStore], known: LoadCosts, *, copying: int = 0) -> LoadPlan:
    missing = [block(number) for number in range(count)]
    return plan_load(missing, stores, known, block_size=SIZE, copying_bytes=copying * BLOCK_BYTES)


def shape(found: LoadPlan) -> list[tuple[str, int]]:
    return [(segment.store.name, segment.count) for segment in found.segments]


def test_each_block_comes_from_the_fastest_tier_that_has_it_up_to_the_first_that_none_has() -> None:
    cpu, disk = FakeStore("cpu", {0, 1, 4}), FakeStore("disk", {0, 2, 3, 4, 5, 7})
    found = plan(9, [cpu, disk], LoadCosts())
    assert shape(found) == [("cpu", 2), ("disk", 2), ("cpu", 1), ("disk", 1)]
    assert (found.reason, found.most_seconds) == (None, None)


def test_without_the_first_block_there_is_a_reason() -> None:
    cpu, disk = FakeStore("cpu", {1}), FakeStore("disk", {1})
    assert plan(3, [cpu, disk], LoadCosts()) == LoadPlan([], "not on disk")
    disk = FakeStore("disk", {0}, may_read=False)
    assert plan(3, [cpu, disk], LoadCosts()) == LoadPlan([], "paused")
    assert plan(3, [cpu, FakeStore("disk", {0}, read_room=0)], LoadCosts()) == LoadPlan([], "no_room")


def test_room_at_a_tier_ends_a_plan() -> None:
    cpu, disk = FakeStore("cpu", {0, 1}), FakeStore("disk", {2, 3, 4}, read_room=2)
    assert shape(plan(5, [cpu, disk], LoadCosts())) == [("cpu", 2), ("disk", 2)]


def test_a_segment_is_fetched_while_that_beats_computing() -> None:
    cpu, disk = FakeStore("cpu", {0, 1}), FakeStore("disk", {2, 3})
    quick = costs(cpu=10_000, disk=1000)
    assert shape(plan(4, [cpu, disk], quick)) == [("cpu", 2), ("disk", 2)]
    found = plan(4, [cpu, disk], costs(cpu=10_000, disk=50))
    assert shape(found) == [("cpu", 2)]
    assert (found.reason, found.slow) == ("slower", disk)
    # What others wait for comes first, on the disk and on the link.
    disk.reading_bytes = 30 * BLOCK_BYTES
    assert shape(plan(4, [cpu, disk], quick)) == [("cpu", 2)]
    assert shape(plan(4, [cpu, disk], quick, copying=1000)) == []


def test_a_slow_segment_is_worth_it_for_those_behind_it() -> None:
    cpu, disk = FakeStore("cpu", set(range(2, 50))), FakeStore("disk", {0, 1})
    assert shape(plan(50, [cpu, disk], costs(cpu=10_000, disk=50))) == [("disk", 2), ("cpu", 48)]
    assert shape(plan(4, [cpu, disk], costs(cpu=10_000, disk=20))) == []


def test_a_slow_tier_is_tried_with_few_blocks_for_no_longer_than_computing_takes() -> None:
    disk = FakeStore("disk", set(range(100)))
    known = costs(disk=10)
    found = [plan(100, [disk], known) for _ in range(128)]
    trials = [one for one in found if one.segments]
    assert [shape(one) for one in trials] == [[("disk", 8)]] * 2
    assert [one.most_seconds for one in trials] == [8 / 100] * 2
    assert {one.reason for one in found if not one.segments} == {"slower"}
