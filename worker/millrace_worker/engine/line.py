"""The sequences of one rank that wait, in order, and which of them may start."""

from __future__ import annotations

from bisect import insort

from .ordered import discard
from .picking import Picking
from .sequence import Sequence


class Line:
    """Sequences by `place`, the lowest first; with `picking`, those that never ran are picked by their prefixes.

    Who may not start for now is in the line, but not ready: parked until it is woken, held until all that are held are
    let go, or set aside, of which the first ones or all are returned before a step's admission.
    """

    def __init__(self, picking: Picking | None = None) -> None:
        self._picking = picking
        self._members: dict[int, Sequence] = {}
        #: Places of all, and of those that are ready, in order.
        self._places: list[int] = []
        self._ready: list[int] = []
        self._aside: dict[int, Sequence] = {}
        #: Places of those, in order.
        self._aside_places: list[int] = []
        self._held: dict[int, Sequence] = {}
        #: Whether what was picked had no room, so that for the rest of this step nobody is.
        self._in_order = False

    def __len__(self) -> int:
        return len(self._members)

    @property
    def num_held(self) -> int:
        return len(self._held)

    @property
    def first(self) -> Sequence:
        """The first in order, ready or not."""
        return self._members[self._places[0]]

    def add(self, seq: Sequence, place: int) -> None:
        """At a negative place, it comes before those that are picked."""
        seq.place = place
        self._members[place] = seq
        insort(self._places, place)
        insort(self._ready, place)
        picking = self._picking_of(seq)
        if picking is not None:
            picking.add(seq)

    def remove(self, seq: Sequence) -> None:
        """It waits no more, and has not started."""
        self._drop(seq)
        picking = self._picking_of(seq)
        if picking is not None:
            picking.remove(seq)

    def start(self, seq: Sequence, now: float) -> None:
        """It waits no more: it has started."""
        self._drop(seq)
        picking = self._picking_of(seq)
        if picking is not None:
            picking.start(seq, now)

    def next(self, now: float) -> Sequence | None:
        """Who is to start before all others that are ready."""
        if not self._ready:
            return None
        place = self._ready[0]
        if self._picking is not None and place > 0 and not self._in_order:
            place = self._picking.choose(self._ready, self._members, now)
        return self._members[place]

    def no_room(self, seq: Sequence, now: float) -> bool:
        """There is none for the next one, `seq`. Whether another is the next now, since `seq` was picked before it."""
        if self._picking is None or seq.place == self._ready[0] or self._picking.is_due(seq.place, now):
            return False
        self._in_order = True
        return True

    def park(self, seq: Sequence) -> None:
        """It is not ready until it is woken."""
        discard(self._ready, seq.place)
        picking = self._picking_of(seq)
        if picking is not None:
            picking.park(seq)

    def wake(self, seq: Sequence, now: float | None) -> None:
        """A parked one is ready, since `now`; None: as if it had been all the time."""
        insort(self._ready, seq.place)
        picking = self._picking_of(seq)
        if picking is not None:
            picking.wake(seq, now)

    def hold(self, seq: Sequence) -> None:
        """It is not ready until all that are held are let go."""
        self.park(seq)
        self._held[seq.place] = seq

    def let_go(self) -> None:
        for seq in self._held.values():
            self.wake(seq, None)
        self._held.clear()

    def set_aside(self, seq: Sequence) -> None:
        """It is not ready until it is returned."""
        self.park(seq)
        self._aside[seq.place] = seq
        insort(self._aside_places, seq.place)

    def begin(self, most: int | None) -> None:
        """Before a step's admission: so many of those set aside are returned, the first ones; None: all."""
        self._in_order = False
        for place in self._aside_places[:most]:
            self.wake(self._aside.pop(place), None)
        del self._aside_places[:most]

    def _picking_of(self, seq: Sequence) -> Picking | None:
        return self._picking if seq.place > 0 else None

    def _drop(self, seq: Sequence) -> None:
        del self._members[seq.place]
        discard(self._places, seq.place)
        discard(self._ready, seq.place)
        self._held.pop(seq.place, None)
        if self._aside.pop(seq.place, None) is not None:
            discard(self._aside_places, seq.place)
