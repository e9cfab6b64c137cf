"""Whose turn it is where a step has too little room for all that run."""

from __future__ import annotations

from bisect import bisect_right
from itertools import chain

import numpy as np

from .filling import Filling
from .sequence import URGENT, Sequence
from .step import SEQUENCE_COST


class Turns:
    """Remembers the last one that had its turn."""

    def __init__(self) -> None:
        #: `order` of the last bounded sequence that had its turn.
        self._turn = 0

    def shares(self, members: list[Sequence], owed: np.ndarray, rank: int, filling: Filling) -> np.ndarray:
        """How many of the tokens that they owe these running sequences of one rank have in this step. [M] int64.

        The first ones all, until the step is full. Where it is bounded, those come first that had none for longest, and
        each costs more than its tokens.
        """
        bounded = rank != URGENT and filling.is_bounded
        most, each = filling.most(rank), SEQUENCE_COST if bounded else 0
        first = bisect_right(members, self._turn, key=_order) if bounded else 0
        served = np.flatnonzero(owed)
        all_fit = int(owed.sum()) + each * (len(served) - 1) <= most
        if all_fit and not (filling.bounds_long and (owed > 1).any()):
            if bounded and len(served) > 0:
                # The last one before `first`, or of all.
                self._turn = members[served[np.searchsorted(served, first) - 1]].order
            return owed
        wanted, counts = owed.tolist(), np.zeros_like(owed)
        for index in chain(range(first, len(members)), range(first)):
            if most <= 0:
                break
            count = filling.share(wanted[index], most)
            if count > 0:
                counts[index] = count
                filling.note_share(count)
                most -= count + each
                if bounded:
                    self._turn = members[index].order
        return counts


def _order(seq: Sequence) -> int:
    return seq.order
