"""How much a step may hold while interactive sequences are about: learnt from how long steps take."""

from __future__ import annotations

from .filling import LEAST_COST

#: Seconds of a step beside interactive sequences, or this many times the quickest step where that is more.
_STEP_SECONDS = 0.01
_TIMES_QUICKEST = 2.0
#: The share of the token budget that is allowed before anything is known.
_FIRST_SHARE = 16
#: A single step, which may have been disturbed, changes the allowance by no more than these factors.
_SHRINK, _GROW = 0.5, 1.25


class Pace:
    """`allowance` is in the units of Step.cost.

    On a GPU it is far more than the decodes of a full batch and bounds the prompts that are computed beside them; on a
    CPU, where every sequence costs, it bounds these, too.
    """

    def __init__(self, most: int):
        self._most = max(most, LEAST_COST)
        self._quickest = float("inf")
        self.allowance = max(LEAST_COST, most // _FIRST_SHARE)

    def observe(self, cost: int, seconds: float) -> None:
        """A step of this cost took so long. Small steps say how quick a step can be, large ones what cost takes."""
        if seconds <= 0:
            return
        self._quickest = min(self._quickest, seconds)
        if cost < self.allowance / 2:
            return
        wanted = max(_STEP_SECONDS, _TIMES_QUICKEST * self._quickest)
        fitting = cost * wanted / seconds
        bounded = max(self.allowance * _SHRINK, min(self.allowance * _GROW, fitting))
        self.allowance = max(LEAST_COST, min(self._most, int(bounded)))
