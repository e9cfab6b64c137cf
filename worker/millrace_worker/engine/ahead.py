"""Sequences that blocks are fetched for, from when that begins until they start."""

from __future__ import annotations

from collections import Counter

from .sequence import Sequence


class Ahead:
    """How many there are, and how many blocks of the pool they will take that they have not found there."""

    def __init__(self) -> None:
        #: Rank and blocks, by seq_id.
        self._members: dict[int, tuple[int, int]] = {}
        #: By rank.
        self._sequences: Counter[int] = Counter()
        self._blocks: Counter[int] = Counter()

    def add(self, seq: Sequence, blocks: int) -> None:
        """Blocks are fetched for it, perhaps again."""
        self.remove(seq)
        self._members[seq.seq_id] = seq.rank, blocks
        self._sequences[seq.rank] += 1
        self._blocks[seq.rank] += blocks

    def remove(self, seq: Sequence) -> None:
        """It has started, or is gone, if it was here."""
        if seq.seq_id in self._members:
            rank, blocks = self._members.pop(seq.seq_id)
            self._sequences[rank] -= 1
            self._blocks[rank] -= blocks

    def up_to(self, rank: int) -> tuple[int, int]:
        """Sequences and blocks of those that start no later than others of this rank."""
        ranks = [other for other in self._sequences if other <= rank]
        return sum(self._sequences[other] for other in ranks), sum(self._blocks[other] for other in ranks)
