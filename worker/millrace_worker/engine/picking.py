"""Who of those that wait is picked next, so that sequences with a common prefix run together."""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from collections.abc import Mapping
from itertools import takewhile

from .ordered import discard
from .prefixes import Prefixes
from .sequence import Sequence

#: Tokens of a prefix that is worth picking for: grouped decode pays from there on.
LEAST_TOKENS = 256
#: Where nobody shares a prefix with the sequence before, the one is picked of so many that have waited for longest that
#: has most of its prefix.
_CANDIDATES = 8
#: Shares of the longest wait. Once somebody is late for the first, runs of one prefix end for it, but last the second.
_PATIENCE = 0.5
_SHORTEST_RUN = 1 / 16
#: Whenever somebody is picked, so many of the newest are looked at: their prompts have to be hashed.
_NAMED_AT_ONCE = 4


class Picking:
    """Sequences of one rank by the names of their prefixes, of `least` blocks, twice, four times as many, and so on.

    Next comes who shares the longest of them with the one that started last, in order of arrival; where nobody does,
    one of the oldest, and of these one whose prefix is there. That changes the order, not how many start: a sequence
    that would have started by now in order of arrival is late. Once it has been for `longest` seconds, nobody is picked
    before it.
    """

    def __init__(self, prefixes: Prefixes, *, least: int, longest: float) -> None:
        self._prefixes, self._least, self._longest = prefixes, least, longest
        #: Places of those that are ready, by each name.
        self._groups: dict[bytes, list[int]] = {}
        #: Names of each that waits, the shortest prefix first, by its place.
        self._names: dict[int, tuple[bytes, ...]] = {}
        self._unnamed: OrderedDict[int, Sequence] = OrderedDict()
        #: Places of those that are not ready.
        self._away: set[int] = set()
        #: Names of the sequence that started last, and how many of them the one before it had.
        self._run: tuple[bytes, ...] = ()
        self._shared = 0
        self._run_began = 0.0
        #: Those that are not late, in order of arrival, and whether they wait still.
        self._in_time: OrderedDict[int, bool] = OrderedDict()
        #: Since when the others are, and those of them that are ready, the longest first.
        self._late_since: dict[int, float] = {}
        self._late: list[tuple[float, int]] = []

    def add(self, seq: Sequence) -> None:
        """It waits, and is ready."""
        self._unnamed[seq.place] = seq
        self._in_time[seq.place] = True

    def remove(self, seq: Sequence) -> None:
        """It waits no more, and has not started."""
        self._in_time.pop(seq.place, None)
        self._forget(seq)

    def start(self, seq: Sequence, now: float) -> None:
        """It waits no more: it has started. In order of arrival, the oldest of those in time would have."""
        names = self._names_of(seq)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(names, self._run, strict=False)))
        if shared < self._shared:
            self._run_began = now
        self._run, self._shared = names, shared
        self._forget(seq)
        if seq.place in self._in_time:
            self._in_time[seq.place] = False
        if self._in_time:
            place, waits = self._in_time.popitem(last=False)
            if waits:
                self._late_since[place] = now
                if place not in self._away:
                    insort(self._late, (now, place))

    def park(self, seq: Sequence) -> None:
        """It is not ready."""
        place = seq.place
        for name in self._names_of(seq):
            self._leave_group(name, place)
        self._away.add(place)
        if place in self._late_since:
            discard(self._late, (self._late_since[place], place))

    def wake(self, seq: Sequence, now: float | None) -> None:
        """It is ready again; late, if it is, since `now`, or None: since when it was."""
        place = seq.place
        self._away.discard(place)
        for name in self._names_of(seq):
            insort(self._groups.setdefault(name, []), place)
        if place in self._late_since:
            if now is not None:
                self._late_since[place] = now
            insort(self._late, (self._late_since[place], place))

    def is_due(self, place: int, now: float) -> bool:
        """Whether nobody may be picked before this one, but those that are late for as long."""
        since = self._late_since.get(place)
        return since is not None and now - since >= self._longest

    def choose(self, ready: list[int], members: Mapping[int, Sequence], now: float) -> int:
        """The place of the next one; `ready` are the places of those that are, in order, of these `members`."""
        self._name_some()
        if self._late:
            since, place = self._late[0]
            due, run = now - since, now - self._run_began
            if due >= self._longest or (due >= _PATIENCE * self._longest and run >= _SHORTEST_RUN * self._longest):
                return place
        for name in reversed(self._run):
            group = self._groups.get(name)
            if group:
                return group[0]
        return max(ready[:_CANDIDATES], key=lambda place: self._num_there(members[place]))

    def _num_there(self, seq: Sequence) -> int:
        return sum(1 for _ in takewhile(self._prefixes.is_there, self._names_of(seq)))

    def _name_some(self) -> None:
        for _ in range(min(_NAMED_AT_ONCE, len(self._unnamed))):
            self._names_of(next(iter(self._unnamed.values())))

    def _names_of(self, seq: Sequence) -> tuple[bytes, ...]:
        """Its names; of one that has none yet, made now."""
        place = seq.place
        names = self._names.get(place)
        if names is None:
            del self._unnamed[place]
            names = self._names[place] = self._prefixes.names(seq, self._least)
            for name in names:
                insort(self._groups.setdefault(name, []), place)
        return names

    def _forget(self, seq: Sequence) -> None:
        place = seq.place
        self._unnamed.pop(place, None)
        for name in self._names.pop(place, ()):
            self._leave_group(name, place)
        self._away.discard(place)
        since = self._late_since.pop(place, None)
        if since is not None:
            discard(self._late, (since, place))

    def _leave_group(self, name: bytes, place: int) -> None:
        group = self._groups.get(name)
        if group is not None:
            discard(group, place)
            if not group:
                del self._groups[name]
