"""What decode attention does in a step, as lists of tasks: cut to equal work on the host, read by the kernels.

A context is read in parts: first the runs of blocks that several sequences share, each once for all of them, then what
is the sequence's own. Where a sequence has several parts, their results are merged by log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

#: int32 numbers of a record of each list; those behind the fields named below are padding.
TASK_WIDTH, SHARED_WIDTH, MERGE_WIDTH = 8, 8, 4
#: Of fewer rows, contexts have so many parts that a launch of its own merges them faster than the last of their tasks.
_LEAST_MERGED_IN_PLACE = 16
#: Parts of contexts are cut at multiples of this many tokens.
CUT = 64
#: Fewest tokens that are worth a part of their own: of few sequences, which leave the device idle, and of more.
_LEAST_PART, _FEW_PROGRAMS = (64, 128), 16
#: Programs that a multiprocessor has to choose from where contexts are cut: the more, the evener; but those of fewer
#: tokens than this cost more than they even out, as measured on an H200, and then half as many do.
_PROGRAMS, _SHORT_PART = 8, 512
#: Contexts of nearly one length are cut into half as many, too, since there is nothing to even out.
_NEARLY = 1.25
#: Most parts of one context.
_MOST_PARTS = 32
#: Fewest tokens of a shared run that are worth a program of their own.
_LEAST_SHARED_PART = 256


@dataclass(frozen=True, slots=True)
class SharedRun:
    """The tokens from `begin` to `end` lie in the same blocks for all members, and are read once for all of them.

    A member's runs follow one another from the start of its context, as nested prefixes do.
    """

    members: np.ndarray  # [M] int, rows of the batch
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class SharedReads:
    """What plans with shared runs do: tokens read once for several sequences, and those not read again because of it.

    Without sharing, attention would read both.
    """

    read: int = 0
    saved: int = 0

    @classmethod
    def of(cls, plan: Mapping[str, np.ndarray]) -> SharedReads:
        """Of the arrays of `plan_decode`: of the runs that found room in it."""
        if not len(records := plan.get("shared", ())):
            return cls()
        _, count, line, begin, end, *_ = np.asarray(records).reshape(-1, SHARED_WIDTH).T
        # Tiles of the members of one part of a run follow each other.
        first = np.ones(len(line), dtype=bool)
        first[1:] = (line[1:] != line[:-1]) | (begin[1:] != begin[:-1])
        length = (end - begin).astype(np.int64)
        read = int(length[first].sum())
        return cls(read, int((length * count).sum()) - read)


@dataclass(frozen=True, slots=True)
class PlanShape:
    """How many records a plan has room for; CUDA graphs want fixed numbers of programs."""

    #: One-token sequences.
    rows: int
    kv_heads: int
    #: Query heads of a KV head.
    group: int
    processors: int
    #: Whether shared runs may be planned; never with more query heads of a KV head than a tile has rows.
    shared: bool = False

    def __post_init__(self) -> None:
        if self.group > self.tile_rows:
            object.__setattr__(self, "shared", False)

    @property
    def cuts(self) -> int:
        """How many tasks there may be more than rows."""
        return -(-_PROGRAMS * self.processors // self.kv_heads)

    @property
    def tasks(self) -> int:
        return self.rows + self.cuts

    @property
    def tile_members(self) -> int:
        """Sequences whose queries one program takes over a shared run."""
        return max(1, self.tile_rows // self.group)

    @property
    def tile_rows(self) -> int:
        """Query rows of a program over a shared run."""
        return 64 if self.rows * self.group <= 128 else 128

    @property
    def merges_in_place(self) -> bool:
        """Whether the last task of a row to end merges the row's results."""
        return self.rows >= _LEAST_MERGED_IN_PLACE

    @property
    def shared_tasks(self) -> int:
        """Two levels of full tiles, and some that are not full or cut."""
        if not self.shared:
            return 0
        return 2 * -(-self.rows // self.tile_members) + max(16, -(-2 * self.processors // self.kv_heads))

    @property
    def members(self) -> int:
        return 2 * self.rows if self.shared else 0

    @property
    def slots(self) -> int:
        """Partial results."""
        own = self.tasks
        return own + self.shared_tasks * self.tile_members if self.shared else own

    def counts(self) -> dict[str, int]:
        """Numbers of int32 of each array of `plan_decode`."""
        sizes = {"tasks": self.tasks * TASK_WIDTH}
        if not self.merges_in_place:
            sizes["merges"] = self.rows * MERGE_WIDTH
        if self.shared:
            sizes |= {"shared": self.shared_tasks * SHARED_WIDTH, "members": self.members, "member_slots": self.members}
        return sizes


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """A plan on the device. Records behind the last one begin with -1."""

    shape: PlanShape
    #: [tasks, 8] int32: row of q, line of the block tables, first token, end; slot of the partial result, or -1 where
    #: the row has no other; the row's first slot, how many of its slots are tasks', and how many it has.
    tasks: torch.Tensor
    #: Where tasks merge: [rows * Hkv] int32 zeros, which they leave as zeros; plans that do not run at once may share.
    arrivals: torch.Tensor | None = None
    #: Where they do not: [rows, 4] int32: row of q, first slot, number of slots. Rows without a record have one part.
    merges: torch.Tensor | None = None
    #: [shared_tasks, 8] int32: first member, their number, line of the block tables, first token, end, part of the run.
    shared: torch.Tensor | None = None
    #: [members] int32: rows of q; and the first slot of the run in each, to which the part is added.
    members: torch.Tensor | None = None
    member_slots: torch.Tensor | None = None

    @classmethod
    def of(
        cls, shape: PlanShape, tensors: Mapping[str, torch.Tensor], arrivals: torch.Tensor | None = None
    ) -> DecodePlan:
        """The plan in one-dimensional tensors of `shape.counts()` numbers; without `arrivals`, with some of its own."""
        tasks = tensors["tasks"].view(-1, TASK_WIDTH)
        if shape.merges_in_place and arrivals is None:
            arrivals = torch.zeros(shape.rows * shape.kv_heads, dtype=torch.int32, device=tasks.device)
        return cls(
            shape,
            tasks,
            arrivals if shape.merges_in_place else None,
            None if shape.merges_in_place else tensors["merges"].view(-1, MERGE_WIDTH),
            tensors["shared"].view(-1, SHARED_WIDTH) if shape.shared else None,
            tensors.get("members"),
            tensors.get("member_slots"),
        )


def plan_decode(
    context_lens: np.ndarray, lines: np.ndarray, shape: PlanShape, runs: Sequence[SharedRun] = ()
) -> dict[str, np.ndarray]:
    """The arrays of a DecodePlan, int32, each as long as it needs, for sequences of `context_lens` [n] tokens.

    `lines` [n] are their lines in the block tables. A run ends before the query's own token. Of the runs, outer ones
    first, those are left out for which the shape has no room; runs within them are then read as a part of the context.
    """
    context = context_lens.astype(np.int64)
    rows = len(context)
    shared = _SharedTasks(rows, shape, runs)
    for run in runs:
        shared.add(run, int(lines[run.members[0]]))
    own = context - shared.covered
    parts, length = _cut(own, shape)
    slots = parts + shared.parts
    split = slots > 1
    first_slot = np.cumsum(np.where(split, slots, 0)) - slots
    row = np.repeat(np.arange(rows), parts)
    part = np.arange(len(row)) - np.repeat(np.cumsum(parts) - parts, parts)
    begin = shared.covered[row] + part * length[row]
    end = np.minimum(begin + length[row], context[row])
    tasks = np.zeros((len(row), TASK_WIDTH), dtype=np.int32)
    tasks[:, 0], tasks[:, 1], tasks[:, 2], tasks[:, 3] = row, lines[row], begin, end
    tasks[:, 4] = np.where(split[row], first_slot[row] + part, -1)
    tasks[:, 5], tasks[:, 6], tasks[:, 7] = first_slot[row], parts[row], slots[row]
    # The longest first, so that none of them is alone at the end.
    order = np.argsort(begin - end, kind="stable")
    plan = {"tasks": tasks[order].ravel()}
    if not shape.merges_in_place:
        merged = split.nonzero()[0]
        merges = np.zeros((len(merged), MERGE_WIDTH), dtype=np.int32)
        merges[:, 0], merges[:, 1], merges[:, 2] = merged, first_slot[merged], slots[merged]
        plan["merges"] = merges.ravel()
    return plan | shared.arrays(first_slot + parts) if shape.shared else plan


def _cut(own: np.ndarray, shape: PlanShape) -> tuple[np.ndarray, np.ndarray]:
    """(parts, tokens of a part) of contexts of so many tokens; the last part has what is left."""
    few = len(own) * shape.kv_heads <= _FEW_PROGRAMS
    least, total = _LEAST_PART[0] if few else _LEAST_PART[1], int(own.sum())
    wanted = -(-total // shape.cuts)
    if own.size and own.max() <= _NEARLY * own.min():
        wanted = max(least, 2 * wanted)
        parts = -(-own // wanted) if few else own // wanted
    elif wanted < _SHORT_PART:
        wanted = max(least, min(_SHORT_PART, 2 * wanted))
        parts = (own + wanted // 2) // wanted
    else:
        # Contexts that are no longer than what a quarter of a multiprocessor does need not be cut.
        parts = np.where(own <= 2 * wanted, 1, (own + wanted // 2) // wanted)
    parts = np.clip(parts, 1, _MOST_PARTS)
    length = np.maximum(-(-own // (parts * CUT)) * CUT, CUT)
    return np.maximum(-(-own // length), 1), length


class _SharedTasks:
    """The part of a plan that reads shared runs."""

    def __init__(self, rows: int, shape: PlanShape, runs: Sequence[SharedRun]) -> None:
        self._shape = shape
        #: Full tiles of the runs that are still to come, and of all.
        self._tiles_left = self._tiles = sum(self._tiles_of(run) for run in runs)
        #: Of each row: tokens that its runs cover, and partial results of them.
        self.covered, self.parts = np.zeros(rows, dtype=np.int64), np.zeros(rows, dtype=np.int64)
        self._records: list[tuple[int, int, int, int, int, int]] = []
        self._members: list[np.ndarray] = []
        self._ordinals: list[np.ndarray] = []
        self._num_members = 0

    def _tiles_of(self, run: SharedRun) -> int:
        return -(-len(run.members) // self._shape.tile_members)

    def add(self, run: SharedRun, line: int) -> None:
        shape, count, tiles = self._shape, len(run.members), self._tiles_of(run)
        free, tiles_left = shape.shared_tasks - len(self._records), self._tiles_left
        self._tiles_left -= tiles
        begin = int(self.covered[run.members[0]])
        if run.begin != begin or self._num_members + count > shape.members or tiles > free:
            return
        # Cut so that all runs together fill the device, and none takes the room of those that come later.
        wanted = shape.processors // (self._tiles * shape.kv_heads)
        parts = max(1, min(wanted, free // tiles_left, (run.end - begin) // _LEAST_SHARED_PART, 16))
        length = -(-(run.end - begin) // (parts * CUT)) * CUT
        parts = -(-(run.end - begin) // length)
        for part in range(parts):
            start = begin + part * length
            stop = min(start + length, run.end)
            for tile in range(0, count, shape.tile_members):
                some = min(shape.tile_members, count - tile)
                self._records.append((self._num_members + tile, some, line, start, stop, part))
        self._members.append(run.members)
        self._ordinals.append(self.parts[run.members])
        self._num_members += count
        self.covered[run.members] = run.end
        self.parts[run.members] += parts

    def arrays(self, first_slot: np.ndarray) -> dict[str, np.ndarray]:
        """`first_slot` of each row: of its first partial result of a run."""
        records = np.zeros((len(self._records), SHARED_WIDTH), dtype=np.int32)
        if not self._records:
            none = np.zeros(0, dtype=np.int32)
            return {"shared": none, "members": none, "member_slots": none}
        records[:, :6] = self._records
        members = np.concatenate(self._members)
        return {
            "shared": records.ravel(),
            "members": members.astype(np.int32),
            "member_slots": (first_slot[members] + np.concatenate(self._ordinals)).astype(np.int32),
        }
