"""Which tokens each program of a prefill for Hopper reads: the kernel's own lines, with NumPy for the language."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from millrace_kernels import _hopper_prefill, _prefill_parts
from millrace_kernels._hopper_attention import TILE_M, TILE_N

HEAD_DIM, BLOCK_SIZE, TABLE_LINE = 128, 16, 9
#: (query tokens, context) of each sequence.
Pairs = list[tuple[int, int]]


class Number:
    """Integers as the device has them: division rounds towards 0, and without `wide` 32 bits must do."""

    def __init__(self, value: Any, wide: bool = False) -> None:
        self.value, self.wide = np.asarray(value, dtype=np.int64), wide
        assert wide or (abs(self.value) < 2**31).all(), "more than 32 bits hold"

    def _with(self, other: Any, op: Callable[[Any, Any], Any]) -> Number:
        other = other if isinstance(other, Number) else Number(other)
        return Number(op(self.value, other.value), self.wide or other.wide)

    def __add__(self, other: Any) -> Any:
        return other + self if isinstance(other, Pointer) else self._with(other, np.add)

    def __sub__(self, other: Any) -> Number:
        return self._with(other, np.subtract)

    def __mul__(self, other: Any) -> Number:
        return self._with(other, np.multiply)

    def __floordiv__(self, other: Any) -> Number:
        return self._with(other, lambda a, b: np.sign(a) * np.sign(b) * (abs(a) // abs(b)))

    def __lt__(self, other: Any) -> Number:
        return self._with(other, np.less)

    def __le__(self, other: Any) -> Number:
        return self._with(other, np.less_equal)

    def __gt__(self, other: Any) -> Number:
        return self._with(other, np.greater)

    def __ge__(self, other: Any) -> Number:
        return self._with(other, np.greater_equal)

    def __eq__(self, other: Any) -> Number:  # type: ignore[override]
        return self._with(other, np.equal)

    __hash__ = None  # type: ignore[assignment]
    __radd__, __rmul__, __and__ = __add__, __mul__, __mul__

    def __bool__(self) -> bool:
        return bool(self.value)

    def __index__(self) -> int:
        return int(self.value)

    def to(self, kind: str) -> Number:
        return Number(self.value, kind == "int64")


class Pointer:
    """Into an array, or into one of which only places are asked for."""

    dtype = SimpleNamespace(element_ty="bfloat16")

    def __init__(self, array: Any = None, offset: Any = 0) -> None:
        self.array, self.offset = array, offset if isinstance(offset, Number) else Number(offset)

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.array, self.offset + offset)


def load(pointer: Pointer, mask: Any = None, other: int = 0) -> Number:
    at = pointer.offset.value
    there = np.ones(at.shape, bool) if mask is None else mask.value.astype(bool)
    result = np.full(at.shape, other)
    assert ((at >= 0) & (at < len(pointer.array)))[there].all(), "a read beyond an array"
    result[there] = pointer.array[at[there]]
    return Number(result)


def language(program: tuple[int, int], programs: int, begun: list[Any]) -> SimpleNamespace:
    """As much of Gluon as a program uses before its groups begin; what these are given is put into `begun`."""
    return SimpleNamespace(
        program_id=lambda axis: Number(program[axis]),
        num_programs=lambda axis: Number(programs),
        num_warps=lambda: 4,
        arange=lambda first, end, layout: Number(np.arange(first, end)),
        load=load,
        sum=lambda x, axis: Number(x.value.sum(axis)),
        associative_scan=lambda x, axis, add: Number(x.value.cumsum(axis)),
        minimum=lambda a, b: a._with(b, np.minimum),
        maximum=lambda a, b: a._with(b, np.maximum),
        where=lambda which, a, b: Number(np.where(which.value, *(getattr(x, "value", x) for x in (a, b)))),
        int32="int32",
        int64="int64",
        BlockedLayout=lambda *sizes: None,
        NVMMASharedLayout=SimpleNamespace(get_default_for=lambda shape, dtype: None),
        allocate_shared_memory=lambda *what: SimpleNamespace(index=lambda i: None),
        warp_specialize=lambda groups, warps, registers: begun.append([args for _, args in groups]),
    )


class Reading(NamedTuple):
    """What a program does: a part of the context of a tile of rows, by the tile's first token and row."""

    first_token: int
    first_row: int
    line: int
    queries: int
    past: int
    begin: int
    end: int
    part: int = 0
    num_parts: int = 1
    slot: int = 0
    counter: int = 0


class Launch:
    """In the kernel's place: runs the programs of one KV head of a launch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kv_head: int) -> None:
        self._patch, self._kv_head, self._kernel = monkeypatch, kv_head, _hopper_prefill._prefill_kernel.fn
        self.readings: list[Reading] = []
        self.slots = 0
        for module in (_hopper_prefill, _prefill_parts):
            for name in ("find_part", "_find_sequence"):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, getattr(module, name).fn)
        monkeypatch.setattr(_hopper_prefill, "allocate_tiles", lambda *args: None)
        monkeypatch.setattr(_hopper_prefill, "_prefill_kernel", self)

    def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
        def run(*args: Any, num_warps: int, **constants: Any) -> None:
            self.slots = len(args[8]) if constants["SPLIT"] else 0
            numbers = [Number(arg) if isinstance(arg, int) else arg for arg in args]
            numbers[:10] = [Pointer(arg.numpy() if i in (4, 5) else None) for i, arg in enumerate(args[:10])]
            for program in range(grid[1]):
                begun: list[Any] = []
                for module in (_hopper_prefill, _prefill_parts):
                    self._patch.setattr(module, "gl", language((self._kv_head, program), grid[1], begun))
                self._kernel(*numbers, **constants)
                self.readings += [self._reading(groups, constants) for groups in begun]

        return run

    def _reading(self, groups: list[Any], constants: dict[str, Any]) -> Reading:
        (_, _, _, work, parts, *_), _, (_, _, _, table, begin, end, *_) = groups
        first_row, first_token, queries, past, *rest = map(int, work[:-1])
        assert [int(begin), int(end)] == [rest[0], rest[2]]
        line = int(table.offset) // TABLE_LINE
        reading = Reading(first_token, first_row, line, queries, past, int(begin), int(end))
        if not parts:
            return reading
        part, num_parts, arrival, partial, lse = (int(getattr(x, "offset", x)) for x in parts)
        assert partial == lse * HEAD_DIM
        slot, kv_head = divmod(lse // TILE_M, constants["KV_HEADS"])
        counter, half = divmod(arrival, 2)
        assert (kv_head, counter % constants["KV_HEADS"], half, lse % TILE_M) == (self._kv_head, self._kv_head, 0, 0)
        return reading._replace(
            part=part, num_parts=num_parts, slot=slot + part, counter=counter // constants["KV_HEADS"]
        )


def launch(
    monkeypatch: pytest.MonkeyPatch, pairs: Pairs, group: int, kv_heads: int, multiprocessors: int, before: int = 0
) -> Launch:
    """What programs read of these sequences, whose rows are `before` so many others."""
    with monkeypatch.context() as patch:
        patch.setattr(_prefill_parts, "multiprocessors", lambda tensor: multiprocessors)
        launched = Launch(patch, kv_heads - 1)
        queries = [before, *(n for n, _ in pairs)]
        q = torch.empty(sum(queries), group * kv_heads, HEAD_DIM, device="meta")
        _hopper_prefill.launch_prefill(
            q,
            torch.empty(1, 2, kv_heads, BLOCK_SIZE, HEAD_DIM, device="meta"),
            torch.empty(len(pairs), TABLE_LINE, dtype=torch.int32, device="meta"),
            None,
            torch.tensor(queries, dtype=torch.int32).cumsum(0, dtype=torch.int32),
            torch.tensor([context for _, context in pairs], dtype=torch.int32),
            1.0,
            q,
            torch.empty(2 * multiprocessors, dtype=torch.int32, device="meta"),
        )
    return launched


def check(launched: Launch, pairs: Pairs, group: int, before: int) -> None:
    """Each tile's tokens are read once; no two tiles share a slot or a counter."""
    tiles: dict[tuple[int, int], list[Reading]] = {}
    for reading in launched.readings:
        tiles.setdefault(reading[:2], []).append(reading)
    used: list[tuple[str, int]] = []
    first_token = before
    for line, (queries, context) in enumerate(pairs):
        for first_row in range(0, queries * group, TILE_M):
            parts = sorted(tiles.pop((first_token, first_row)), key=lambda reading: reading.part)
            past = context - queries
            seen_by_all = past + first_row // group + 1
            seen = past + min((first_row + TILE_M - 1) // group + 1, queries)
            for r in parts:
                assert (r.line, r.queries, r.past, r.num_parts) == (line, queries, past, len(parts))
                assert r.counter == parts[0].counter
            assert [r.part for r in parts] == list(range(len(parts)))
            assert parts[0].begin == 0
            assert parts[-1].end == seen
            assert all(one.end == other.begin for one, other in pairwise(parts))
            assert all(r.begin % TILE_N == 0 and r.begin + TILE_N <= seen_by_all for r in parts[1:])
            if len(parts) > 1:
                assert all(0 <= r.slot < launched.slots for r in parts)
                assert 0 <= parts[0].counter < launched.slots
                used += [("counter", parts[0].counter), *(("slot", r.slot) for r in parts)]
        first_token += queries
    assert not tiles
    assert len(used) == len(set(used))


def few_queries(rng: random.Random) -> Pairs:
    """Of any number of sequences, with contexts of any length."""
    pairs = []
    for _ in range(rng.choice([1, 1, 2, 3, 7, 40, 128, 129])):
        past = rng.choice([0, 126, 127, 128, 129, rng.randrange(2000), rng.randrange(100_000)])
        queries = rng.choice([0, 1, 2, rng.randrange(1, 40), rng.randrange(1, 200)])
        pairs.append((queries, past + queries))
    return pairs


@pytest.mark.parametrize("seed", range(40))
def test_each_token_is_read_once(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    pairs, group, kv_heads = few_queries(rng), rng.randint(1, 8), rng.choice([1, 2, 3, 5, 8, 16, 32])
    before = rng.choice([0, 0, 1, 300])
    launched = launch(monkeypatch, pairs, group, kv_heads, rng.choice([78, 108, 132]), before)
    check(launched, pairs, group, before)


@pytest.mark.parametrize(
    ("pairs", "num_parts"),
    [
        ([(64, 8256)], 8),  # of each of two tiles: one of 16 programs for every part
        ([(64, 8256), (64, 64), (64, 2112)], 4),
        ([(64, 8256)] * 9, 1),  # more tiles than programs
        ([(1, 900)], 2),
        ([(1, 512)], 1),
        ([(0, 0), (0, 9000)], 0),
    ],
    ids=str,
)
def test_parts_are_as_many_as_there_are_multiprocessors_for(
    monkeypatch: pytest.MonkeyPatch, pairs: Pairs, num_parts: int
) -> None:
    launched = launch(monkeypatch, pairs, 4, 8, 132)
    check(launched, pairs, 4, 0)
    assert max((reading.num_parts for reading in launched.readings), default=0) == num_parts
