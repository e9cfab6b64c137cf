"""A step while it is filled."""

from __future__ import annotations

from .sequence import URGENT
from .step import SEQUENCE_COST, Scheduled, Step

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
        self.scheduled: list[Scheduled] = []
        #: Lowest rank that lost a sequence. What was taken back may have a token on its way, and is not started again
        #: in the same step; and whoever lost blocks has no room for more.
        self.preempted: int | None = None
        self._left = allowance
        self._least = 0 if allowance is None else max(LEAST_COST, allowance // _LEAST_SHARE)
        self._long, self._left_for_long = long, long

    @property
    def is_bounded(self) -> bool:
        return self._left is not None

    def most(self, rank: int) -> int:
        """Tokens that the next sequence of this rank may have."""
        if rank == URGENT or self._left is None:
            return self.tokens
        return max(0, min(self.tokens, self._left - SEQUENCE_COST))

    def share(self, uncomputed: int, most: int) -> int:
        """Tokens, of at most `most`, that a sequence with so many to compute may have; 0: it waits for another step."""
        if 0 < self._long < uncomputed:
            most = min(most, self._left_for_long)
        return min(uncomputed, most)

    def add(self, part: Scheduled) -> None:
        self.scheduled.append(part)
        self.tokens -= part.count
        if part.count > 1:
            self._left_for_long = max(0, self._left_for_long - part.count)
        if self._left is not None:
            self._left -= part.count + SEQUENCE_COST

    def urgent_done(self) -> None:
        """All of rank URGENT are in: the others begin. A step that makes somebody's first token is the shortest."""
        self.tokens += self._kept
        if self._left is None:
            return
        first = any(part.samples and part.seq.num_generated == 0 for part in self.scheduled)
        self._left = self._least if first else max(self._left, self._least)

    def note_preempted(self, rank: int) -> None:
        self.preempted = rank if self.preempted is None else min(self.preempted, rank)

    def may_start(self, rank: int) -> bool:
        return self.preempted is None or rank < self.preempted

    def step(self) -> Step | None:
        """The step, one-token rows first; None for an empty one."""
        if not self.scheduled:
            return None
        decodes = [s for s in self.scheduled if s.count == 1]
        rest = [s for s in self.scheduled if s.count > 1]
        return Step((*decodes, *rest), len(decodes), sum(s.count for s in self.scheduled))
