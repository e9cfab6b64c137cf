"""The sequences that run: their order, their rows, how far they are and the blocks they hold."""

from __future__ import annotations

from bisect import bisect_right, insort

import numpy as np

from .block_pool import BlockPool
from .filling import Filling
from .row_counts import RowCounts
from .sequence import URGENT, Sequence


class Running:
    """By rank, then by first admission: the last one is the first to be preempted."""

    def __init__(self, pool: BlockPool, max_num_seqs: int, block_size: int) -> None:
        self.max_num_seqs = max_num_seqs
        self.seqs: list[Sequence] = []
        self.counts = RowCounts(max_num_seqs)
        self._pool, self._block_size = pool, block_size
        #: Rows of `seqs`; None: not brought up to date yet.
        self._rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.seqs)

    @property
    def rows(self) -> np.ndarray:
        """Of all, in their order. [R] int64."""
        if self._rows is None:
            self._rows = np.array([seq.row for seq in self.seqs], dtype=np.int64)
        return self._rows

    def num_up_to(self, rank: int) -> int:
        """Those of this rank and lower ones, which come first."""
        return bisect_right(self.seqs, rank, key=_rank)

    def of_rank(self, rank: int) -> tuple[list[Sequence], np.ndarray]:
        """Those of this rank, and their rows."""
        first, end = self.num_up_to(rank - 1), self.num_up_to(rank)
        members = self.seqs[first:end]
        return members, self.rows[first:end] if members else np.empty(0, dtype=np.int64)

    def urgent_decode(self) -> bool:
        """Whether an interactive sequence gets its next token in this step."""
        return bool((self.counts.owed(self.rows[: self.num_up_to(URGENT)]) == 1).any())

    def start(self, seq: Sequence, hits: list[int]) -> None:
        """Gives `seq` a row, and a reference of each of the blocks that hold its beginning."""
        self._pool.share(hits)
        seq.block_table = list(hits)
        self.counts.start(seq, len(hits) * self._block_size)
        self._rows = None
        insort(self.seqs, seq, key=_place)

    def leave(self, seq: Sequence) -> None:
        """Takes back row and blocks."""
        if self.seqs[-1] is seq:
            self.seqs.pop()
        else:
            self.seqs.remove(seq)
        self._pool.release(reversed(seq.block_table))
        seq.block_table = []
        self.counts.vacate(seq)
        self._rows = None

    def grow(self, seq: Sequence, blocks: int, filling: Filling) -> None:
        """So many more blocks for `seq`, which are free."""
        seq.block_table += self._pool.allocate(blocks)
        self.counts.capacity[seq.row] += blocks * self._block_size
        filling.grown.append(seq)

    def book(self, seqs: list[Sequence], rows: np.ndarray, counts: np.ndarray, filling: Filling) -> None:
        """Puts tokens that have their blocks into the step."""
        table = self.counts
        starts = table.computed[rows]
        ends = starts + counts
        samples = ends == table.tokens[rows]
        table.computed[rows] = ends
        table.tokens[rows] += samples
        filling.last += [seqs[i] for i in np.flatnonzero(samples & (ends == table.most[rows])).tolist()]
        known = starts < table.known[rows]
        first_tokens = bool(known.any() and (samples & (ends == table.prompt[rows])).any())
        filling.add(seqs, (rows, starts, counts, samples, known), first_tokens=first_tokens)

    def check_integrity(self) -> None:
        """Asserts that rows and blocks agree with the counts."""
        counts = self.counts
        assert counts.num_free + len(self.seqs) == self.max_num_seqs, "rows are lost"
        assert self.rows.tolist() == [seq.row for seq in self.seqs], "rows are out of date"
        for seq in self.seqs:
            capacity = counts.capacity[seq.row]
            assert capacity == len(seq.block_table) * self._block_size, "capacity differs from the blocks"
            assert counts.computed[seq.row] <= capacity, "tokens without a block"


def _rank(seq: Sequence) -> int:
    return seq.rank


def _place(seq: Sequence) -> tuple[int, int]:
    return seq.rank, seq.order
