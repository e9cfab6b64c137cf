"""The sequences of one rank that wait, in order, and which of them may start."""

from __future__ import annotations

from bisect import insort

from .ordered import discard
from .sequence import Sequence


class Line:
    """Sequences by `place`, the lowest first.

    Who may not start for now is in the line, but not ready: parked until it is woken, or set aside until all are
    returned, at the end of a step's admission.
    """

    def __init__(self) -> None:
        self._members: dict[int, Sequence] = {}
        #: Places of all, and of those that are ready, in order.
        self._places: list[int] = []
        self._ready: list[int] = []
        self._aside: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._members)

    @property
    def first(self) -> Sequence:
        """The first in order, ready or not."""
        return self._members[self._places[0]]

    def add(self, seq: Sequence, place: int) -> None:
        seq.place = place
        self._members[place] = seq
        insort(self._places, place)
        insort(self._ready, place)

    def remove(self, seq: Sequence) -> None:
        """It waits no more."""
        del self._members[seq.place]
        discard(self._places, seq.place)
        discard(self._ready, seq.place)

    def next(self) -> Sequence | None:
        """Who is to start before all others that are ready."""
        return self._members[self._ready[0]] if self._ready else None

    def park(self, seq: Sequence) -> None:
        """It is not ready until it is woken."""
        discard(self._ready, seq.place)

    def wake(self, seq: Sequence) -> None:
        """A parked one is ready."""
        insort(self._ready, seq.place)

    def set_aside(self, seq: Sequence) -> None:
        """It is not ready until all are returned."""
        self.park(seq)
        self._aside.append(seq)

    def return_all(self) -> None:
        for seq in self._aside:
            self.wake(seq)
        self._aside.clear()
