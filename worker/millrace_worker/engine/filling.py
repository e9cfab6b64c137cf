"""A step while it is filled."""

from __future__ import annotations

from itertools import chain

import numpy as np

from .sequence import URGENT, Sequence
from .step import SEQUENCE_COST, Step

#: Of the allowance, what the batch lane has in any step, as a share and at least: a sequence and some tokens.
_LEAST_SHARE = 8
LEAST_COST = 2 * SEQUENCE_COST


class Filling:
    """What is scheduled so far and what may still be.

    `tokens` is the budget of all. `allowance` is what the step should cost, in the units of Step.cost: what urgent
    sequences leave of it is for the others, which always have some. None: it may cost anything. Where others run, a
    few tokens of the budget are kept for them, too.

    `long` bounds prompts where somebody reads along: sequences with more tokens than that to compute share as many,
    less what shorter prompts had before them. 0: no bound.
    """

    def __init__(self, tokens: int, allowance: int | None, *, others_run: bool, long: int = 0):
        self._kept = min(LEAST_COST, tokens // _LEAST_SHARE) if others_run else 0
        self.tokens = tokens - self._kept
        #: Of the sequences scheduled, those that Step names so.
        self.grown: list[Sequence] = []
        self.last: list[Sequence] = []
        #: Lowest rank that lost a sequence. What was taken back may have a token on its way, and is not started again
        #: in the same step; and whoever lost blocks has no room for more.
        self.preempted: int | None = None
        self._left = allowance
        self._least = 0 if allowance is None else max(LEAST_COST, allowance // _LEAST_SHARE)
        self._long, self._left_for_long = long, long
        self._seqs: list[list[Sequence]] = []
        #: rows, starts, counts, samples and known of each of `_seqs`.
        self._arrays: list[tuple[np.ndarray, ...]] = []
        self._num_tokens = 0
        self._makes_first_tokens = False

    @property
    def is_bounded(self) -> bool:
        return self._left is not None

    def most(self, rank: int) -> int:
        """Tokens that the next sequence of this rank may have."""
        if rank == URGENT or self._left is None:
            return self.tokens
        return max(0, min(self.tokens, self._left - SEQUENCE_COST))

    @property
    def bounds_long(self) -> bool:
        return self._long > 0

    def share(self, uncomputed: int, most: int) -> int:
        """Tokens, of at most `most`, that a sequence with so many to compute may have; 0: it waits for another step."""
        if 0 < self._long < uncomputed:
            most = min(most, self._left_for_long)
        return min(uncomputed, most)

    def note_share(self, tokens: int) -> None:
        """Somebody has so many: prompts leave the less for long ones."""
        if tokens > 1:
            self._left_for_long = max(0, self._left_for_long - tokens)

    def charge(self, tokens: int, sequences: int) -> None:
        """Takes what these cost from what may still be scheduled."""
        self.tokens -= tokens
        self._num_tokens += tokens
        if self._left is not None:
            self._left -= tokens + SEQUENCE_COST * sequences

    def add(self, seqs: list[Sequence], arrays: tuple[np.ndarray, ...], *, first_tokens: bool) -> None:
        """Schedules tokens of each, as the arrays of a Step say; `first_tokens`: some will have their first sampled."""
        self._seqs.append(seqs)
        self._arrays.append(arrays)
        self._makes_first_tokens |= first_tokens

    def urgent_done(self) -> None:
        """All of rank URGENT are in: the others begin. A step that makes somebody's first token is the shortest."""
        self.tokens += self._kept
        # Long prompts of the others go on, too, if slowly, whatever the urgent ones had of their share.
        self._left_for_long = max(self._left_for_long, -(-self._long // _LEAST_SHARE))
        if self._left is not None:
            self._left = self._least if self._makes_first_tokens else max(self._left, self._least)

    def note_preempted(self, rank: int) -> None:
        self.preempted = rank if self.preempted is None else min(self.preempted, rank)

    def may_start(self, rank: int) -> bool:
        return self.preempted is None or rank < self.preempted

    def step(self) -> Step | None:
        """The step, one-token rows first; None for an empty one."""
        if not self._seqs:
            return None
        seqs, arrays = self._seqs[0], self._arrays[0]
        if len(self._seqs) > 1:
            seqs = list(chain.from_iterable(self._seqs))
            arrays = tuple(map(np.concatenate, zip(*self._arrays, strict=True)))
        ones = arrays[2] == 1
        num_decodes = int(np.count_nonzero(ones))
        if np.count_nonzero(ones[:num_decodes]) < num_decodes:
            order = np.concatenate((np.flatnonzero(ones), np.flatnonzero(~ones)))
            seqs = [seqs[i] for i in order.tolist()]
            arrays = tuple(array[order] for array in arrays)
        rows, starts, counts, samples, known = arrays
        sampling = seqs
        if np.count_nonzero(samples) < len(seqs):
            sampling = [seqs[i] for i in np.flatnonzero(samples).tolist()]
        return Step(
            seqs, rows, starts, counts, samples, known, sampling, self.last, self.grown, num_decodes, self._num_tokens
        )
