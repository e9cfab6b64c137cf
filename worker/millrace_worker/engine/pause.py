"""How long something that failed is left alone."""

from __future__ import annotations

import time


class Pause:
    """Seconds: `first`, then twice as many each time, up to `most`; from the first again once it worked."""

    def __init__(self, first: float, most: float) -> None:
        self._first, self._most, self._next = first, most, first
        self._until = 0.0

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._until

    def begin(self) -> float | None:
        """It failed: for how many seconds it is left alone from now on; None when it is already."""
        if not self.is_over:
            return None  # one of several that met the same trouble
        seconds, self._next = self._next, min(2 * self._next, self._most)
        self._until = time.monotonic() + seconds
        return seconds

    def worked(self) -> None:
        self._next = self._first
