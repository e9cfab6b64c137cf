"""How many jobs a worker can take of each lane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from millrace_schemas import Lane


@dataclass(frozen=True, slots=True)
class Room:
    """Seats that the lanes share, seats that each has to itself, and the lanes that take nothing all the same."""

    shared: int
    own: Mapping[Lane, int] = field(default_factory=dict)
    full: frozenset[Lane] = frozenset()

    def of(self, lane: Lane) -> int:
        """Jobs that this lane may take, if no other takes any."""
        return 0 if lane in self.full else max(0, self.shared, self.own.get(lane, 0))

    def less(self, lane: Lane, count: int) -> Room:
        """What is left when the lane has taken `count` jobs."""
        own = {**self.own, lane: self.own.get(lane, 0) - count}
        return Room(self.shared - count, own, self.full)

    def __bool__(self) -> bool:
        return any(self.of(lane) for lane in Lane)
