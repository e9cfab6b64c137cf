"""The sequences that wait: a line for each rank, and when one is moved up before its rank's turn."""

from __future__ import annotations

from collections.abc import Callable

from .line import Line
from .sequence import OWN, URGENT, Sequence


class Waiting:
    """Lines by rank.

    A job's sequence behind the urgent ones is made one of them once `most_overtakes` of these were started while it was
    the first to wait, or once it was preempted `most_preemptions` times.
    """

    def __init__(self, make_line: Callable[[int], Line], *, most_overtakes: int, most_preemptions: int) -> None:
        """`make_line` for a rank."""
        self._make_line = make_line
        self._most_overtakes, self._most_preemptions = most_overtakes, most_preemptions
        self._lines: dict[int, Line] = {URGENT: make_line(URGENT)}
        #: The latest places at the ends and at the heads of all lines.
        self._last, self._foremost = 0, 0
        #: Urgent sequences started since one of another rank was, while one waited.
        self._overtakes = 0

    @property
    def ranks(self) -> list[int]:
        """Those that there have been, the lowest first."""
        return list(self._lines)

    def line(self, rank: int) -> Line:
        """Those of this rank."""
        line = self._lines.get(rank)
        if line is None:
            self._lines[rank] = line = self._make_line(rank)
            self._lines = dict(sorted(self._lines.items()))
        return line

    def add(self, seq: Sequence) -> None:
        """A new one, behind all others of its rank."""
        self._last += 1
        self.line(seq.rank).add(seq, self._last)

    def put_back(self, seq: Sequence) -> None:
        """One that ran, or was moved up, before all others of its rank."""
        self._foremost -= 1
        self.line(seq.rank).add(seq, self._foremost)

    def remove(self, seq: Sequence) -> None:
        """It ended before it started."""
        self.line(seq.rank).remove(seq)

    def start(self, seq: Sequence, now: float) -> None:
        """It waits no more. Counts whom it has overtaken."""
        self.line(seq.rank).start(seq, now)
        if seq.is_own:
            return
        if seq.priority != URGENT:
            self._overtakes = 0
        elif any(line for rank, line in self._lines.items() if rank not in (URGENT, OWN)):
            self._overtakes += 1

    def let_go(self) -> None:
        """All that were held are ready again."""
        for line in self._lines.values():
            line.let_go()

    def move_up(self) -> Sequence | None:
        """Makes the first of those that wait behind the urgent ones one of them, if it has waited for enough."""
        line = next((line for rank, line in self._lines.items() if rank not in (URGENT, OWN) and line), None)
        if line is None:
            return None
        seq = line.first
        if self._overtakes < self._most_overtakes and seq.num_preempted < self._most_preemptions:
            return None
        self._overtakes = 0
        line.remove(seq)
        seq.rank = URGENT
        self.put_back(seq)
        return seq
