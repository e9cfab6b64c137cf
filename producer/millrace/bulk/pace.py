"""How fast something that counts up moves, and when it will be there, from looks at it. No clock and no I/O here."""

from __future__ import annotations

from itertools import pairwise

#: Seconds that a rate is taken over.
WINDOW = 60.0
#: A count that moves in steps has come to a halt when none was seen for so many of its longest gaps.
_GAPS = 3.0


class Pace:
    """The rate of one count, from samples of it in the order of their times.

    What bulk workers count moves in steps, when answers become durable (`--flush`). A rate is what was added between
    the times of two steps; looks in between say nothing but that it stands. Before two steps were seen it is the mean
    since the begin.
    """

    def __init__(self, began: float | None = None):
        """`began`: Unix time at which it was 0."""
        self._began = began
        #: (time, count) of the first look, and of the last one.
        self._first: tuple[float, float] | None = None
        self._last: tuple[float, float] | None = None
        #: Those at which it was more than before; the two newest and all of the window.
        self._steps: list[tuple[float, float]] = []

    def add(self, at: float, count: float) -> None:
        """What it was at a time, in seconds. An older sample is left out; a smaller count begins anew."""
        if self._last is not None:
            if at <= self._last[0]:
                return
            if count < self._last[1]:
                self._first, self._began, self._steps = None, None, []
            elif count > self._last[1]:
                self._steps.append((at, count))
        self._last = (at, count)
        self._first = self._first or self._last
        while len(self._steps) > 2 and self._steps[0][0] < at - WINDOW:
            del self._steps[0]

    @property
    def rate(self) -> float | None:
        """A second, at the time of the last sample; 0: it has come to a halt; None: nobody can tell yet."""
        if self._first is None or self._last is None:
            return None
        now = self._last[0]
        if len(self._steps) < 2:
            seen = self._steps[-1][0] if self._steps else self._first[0]
            return 0.0 if now - seen > WINDOW else self._mean()
        times = [at for at, _ in self._steps]
        gap = max(later - sooner for sooner, later in pairwise(times))
        if now - times[-1] > max(WINDOW, _GAPS * gap):
            return 0.0
        # A step that is late counts as time without any.
        until = max(times[-1], now - gap)
        return (self._steps[-1][1] - self._steps[0][1]) / (until - times[0])

    def left(self, total: float) -> float | None:
        """Seconds until the count is `total`, if it goes on like this; None: nobody can tell."""
        if self._last is None or self._last[1] >= total:
            return None
        rate = self.rate
        return (total - self._last[1]) / rate if rate else None

    def _mean(self) -> float | None:
        if self._began is None or self._last is None:
            return None
        at, count = self._last
        return count / (at - self._began) if at > self._began and count else None
