from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from millrace_kernels import PlanShape, SharedReads, SharedRun, plan_decode

SHAPE = PlanShape(rows=64, kv_heads=8, group=4, processors=132)


def parts_of(plan: dict[str, np.ndarray]) -> dict[int, list[tuple[int, int]]]:
    """Of each row: the own parts of its context, in order."""
    parts: dict[int, list[tuple[int, int]]] = {}
    for row, line, begin, end, *_ in plan["tasks"].reshape(-1, 8).tolist():
        assert line == row + 100
        parts.setdefault(row, []).append((begin, end))
    return {row: sorted(found) for row, found in parts.items()}


def merges_of(plan: dict[str, np.ndarray]) -> dict[int, tuple[int, int]]:
    """Of each row with several slots: the first, and how many."""
    found: dict[int, tuple[int, int]] = {}
    own: dict[int, list[int]] = {}
    for row, _, _, _, slot, first, parts, slots in plan["tasks"].reshape(-1, 8).tolist():
        assert (slot >= 0) == (slots > 1)
        own.setdefault(row, []).append(parts)
        if slot >= 0:
            assert found.setdefault(row, (first, slots)) == (first, slots)
    assert all(parts == [len(parts)] * len(parts) for parts in own.values())
    if "merges" in plan:
        listed = {row: (first, count) for row, first, count, _ in plan["merges"].reshape(-1, 4).tolist()}
        assert listed == found
    return found


def plan(lens: list[int], shape: PlanShape = SHAPE, runs: list[SharedRun] | None = None) -> dict[str, np.ndarray]:
    made = plan_decode(np.array(lens), np.arange(len(lens)) + 100, shape, runs or [])
    for name, array in made.items():
        assert array.dtype == np.int32
        assert len(array) <= shape.counts()[name], name
    return made


def assert_covers(parts: list[tuple[int, int]], begin: int, end: int) -> None:
    assert parts[0][0] == begin
    assert parts[-1][1] == end
    assert all(first[1] == second[0] for first, second in pairwise(parts))


@pytest.mark.parametrize("seed", range(20))
def test_every_token_is_read_once(seed: int) -> None:
    random = np.random.default_rng(seed)
    lens = random.integers(0, random.choice([10, 300, 20_000]), random.integers(1, 65)).tolist()
    shape = PlanShape(len(lens) + int(random.integers(0, 9)), int(random.choice([1, 2, 8])), 4, 132)
    made = plan(lens, shape)
    parts, slots = parts_of(made), set()
    assert ("merges" in made) == (shape.rows < 16)
    assert sorted(parts) == list(range(len(lens)))
    for row, found in parts.items():
        assert_covers(found, 0, lens[row])
    for row, (first, count) in merges_of(made).items():
        assert count == len(parts[row]) > 1
        slots |= set(range(first, first + count))
    used = [record[4] for record in made["tasks"].reshape(-1, 8).tolist() if record[4] >= 0]
    assert sorted(used) == sorted(slots)
    assert max(used, default=0) < shape.slots


def test_one_long_context_is_cut_over_the_whole_device() -> None:
    parts = parts_of(plan([32_768], PlanShape(1, 8, 4, 132)))[0]
    assert 32 <= len(parts) <= 64


def test_many_equal_contexts_are_not_cut() -> None:
    assert all(len(parts) == 1 for parts in parts_of(plan([1000] * 256, PlanShape(256, 8, 4, 132))).values())


def test_a_context_much_longer_than_the_others_is_cut_and_comes_first() -> None:
    made = plan([100] * 63 + [16_000])
    parts = parts_of(made)
    assert len(parts[63]) > 8
    assert all(len(parts[row]) == 1 for row in range(63))
    lengths = [end - begin for _, _, begin, end, *_ in made["tasks"].reshape(-1, 8).tolist()]
    assert lengths == sorted(lengths, reverse=True)


def test_shared_runs_are_read_for_all_members_and_taken_off_their_own_parts() -> None:
    shape = PlanShape(64, 8, 4, 132, shared=True)
    lens = [600] * 40 + [50] * 24
    outer = SharedRun(np.arange(40), 0, 256)
    inner = SharedRun(np.arange(10, 20), 256, 512)
    made = plan(lens, shape, [outer, inner])
    parts = parts_of(made)
    for row in range(64):
        covered = 512 if 10 <= row < 20 else 256 if row < 40 else 0
        assert_covers(parts[row], covered, lens[row])
    merges = merges_of(made)
    wanted = {row: len(parts[row]) + (2 if 10 <= row < 20 else 1) for row in range(40)}
    assert {row: count for row, (_, count) in merges.items() if row < 40} == wanted
    seen: list[tuple[int, int, int, int]] = []
    for first, count, line, begin, end, part, *_ in made["shared"].reshape(-1, 8).tolist():
        for member in range(first, first + count):
            row, slot = made["members"][member], made["member_slots"][member] + part
            assert merges[row][0] <= slot < merges[row][0] + merges[row][1]
            seen.append((int(row), int(slot), begin, end))
        assert line == 100 + (0 if begin == 0 else 10)
    assert sorted(row for row, *_ in seen) == sorted([*range(40), *range(10, 20)])
    own = [record[4] for record in made["tasks"].reshape(-1, 8).tolist() if record[4] >= 0]
    assert len({*own, *(slot for _, slot, _, _ in seen)}) == len(own) + len(seen)


def test_a_long_run_of_few_members_is_cut() -> None:
    shape = PlanShape(8, 8, 4, 132, shared=True)
    made = plan([9000] * 8, shape, [SharedRun(np.arange(8), 0, 8192)])
    records = made["shared"].reshape(-1, 8)
    assert len(records) > 4
    assert sorted(records[:, 3]) == [0, *sorted(records[:, 4])[:-1]]


@pytest.mark.parametrize(
    ("groups", "size", "prefix"), [(8, 16, 4096), (16, 16, 4096), (16, 64, 2048), (32, 32, 2048), (8, 128, 4096)]
)
def test_many_groups_all_find_room(groups: int, size: int, prefix: int) -> None:
    rows = groups * size
    runs = [SharedRun(np.arange(size * group, size * (group + 1)), 0, prefix) for group in range(groups)]
    parts = parts_of(plan([prefix + 50] * rows, PlanShape(rows, 8, 4, 132, shared=True), runs))
    for row in range(rows):
        assert_covers(parts[row], prefix, prefix + 50)


def test_groups_of_more_heads_than_a_tile_has_rows_share_nothing() -> None:
    assert not PlanShape(8, 1, 256, 132, shared=True).shared
    assert PlanShape(8, 1, 64, 132, shared=True).shared


def test_runs_that_find_no_room_are_read_by_their_members() -> None:
    shape = PlanShape(4, 8, 4, 132, shared=True)
    runs = [SharedRun(np.arange(4), 64 * depth, 64 * depth + 64) for depth in range(5)]
    parts = parts_of(plan([1000] * 4, shape, runs))
    assert_covers(parts[0], 128, 1000)


def test_what_is_read_for_several_is_that_of_the_runs_however_they_are_cut() -> None:
    """Into tiles of members, and into parts of a run that has few."""
    rows = np.arange(64)
    shape = PlanShape(64, 8, 4, 132, shared=True)
    nested = [SharedRun(rows[:50], 0, 4096), SharedRun(rows[50:], 0, 512), SharedRun(rows[:10], 4096, 4608)]
    made = plan([5000] * 64, shape, nested)
    assert len(made["shared"]) > 8 * len(nested)
    assert SharedReads.of(made) == SharedReads(4096 + 512 + 512, 49 * 4096 + 13 * 512 + 9 * 512)
    few = PlanShape(4, 8, 4, 132, shared=True)
    assert SharedReads.of(plan([9000] * 4, few, [SharedRun(rows[:4], 0, 8192)])) == SharedReads(8192, 3 * 8192)


def test_runs_that_find_no_room_are_not_counted() -> None:
    shape = PlanShape(4, 8, 4, 132, shared=True)
    runs = [SharedRun(np.arange(4), 64 * depth, 64 * depth + 64) for depth in range(5)]
    assert SharedReads.of(plan([1000] * 4, shape, runs)) == SharedReads(128, 3 * 128)
    assert SharedReads.of(plan([1000] * 4, shape)) == SharedReads()
    assert SharedReads.of(plan([1000] * 4)) == SharedReads()
