"""Records that are to be in the bucket: those that more prompts begin with come first."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable

from millrace_worker.courier_frames import Done, Store, ToCourier

from .bucket_names import BucketNames
from .disk_index import DiskIndex
from .pause import Pause

#: Not failures of the bucket: the record is not on the disk any more.
_DROPPED = "dropped"


class Uploads:
    """For the tier's thread; `waits` is for any. Nothing is lost when a request fails, only later."""

    def __init__(
        self,
        index: DiskIndex,
        names: BucketNames,
        pause: Pause,
        send: Callable[[ToCourier], None],
        *,
        most_waiting: int,
        most_storing: int,
    ) -> None:
        self.counts = Counter(dict.fromkeys(("stored_blocks", "present_blocks", "spoilt_blocks", "unstored_blocks"), 0))
        self._index, self._names, self._pause, self._send = index, names, pause, send
        self._most_waiting, self._most_storing = most_waiting, most_storing
        #: (place in its prompt, when it came, name), the least first, and the places by name.
        self._order: list[tuple[int, int, bytes]] = []
        self._places: dict[bytes, int] = {}
        self._storing: dict[bytes, int] = {}
        #: Names of objects that are to be deleted, and those that the courier was told of.
        self._spoilt: set[bytes] = set()
        self._removing: set[bytes] = set()
        self._came = 0

    def __len__(self) -> int:
        """Requests that the courier was asked for."""
        return len(self._storing) + len(self._removing)

    @property
    def num_waiting(self) -> int:
        return len(self._places)

    def waits(self, name: bytes) -> bool:
        return name in self._places or name in self._storing

    def add(self, records: Iterable[tuple[int, bytes]]) -> None:
        """(place in its prompt, name) each. When too many wait, those furthest from the beginnings are let go."""
        for place, name in records:
            if not self.waits(name) and name not in self._names:
                self._came += 1
                self._places[name] = place
                heapq.heappush(self._order, (place, self._came, name))
        if len(self._order) > 2 * self._most_waiting:
            kept = heapq.nsmallest(self._most_waiting, self._order)
            self.counts["unstored_blocks"] += len(self._order) - len(kept)
            self._order, self._places = kept, {name: place for place, _, name in kept}

    def remove(self, name: bytes) -> None:
        """What the bucket has under this name is no good."""
        self.counts["spoilt_blocks"] += 1
        self._names.spoil(name)
        self._spoilt.add(name)

    def go_on(self) -> None:
        """Asks for as much as may be asked for now. Only while there is a courier that takes requests."""
        if self._spoilt:
            self._send(ToCourier(remove=list(self._spoilt)))
            self._removing |= self._spoilt
            self._spoilt = set()
        asked: list[Store] = []
        late: list[tuple[int, bytes]] = []
        while self._order and len(self._storing) < self._most_storing and self._pause.is_over:
            place, _, name = heapq.heappop(self._order)
            del self._places[name]
            if name in self._removing:
                late.append((place, name))
            elif name not in self._names and self._index.contains(name):
                self._storing[name] = place
                asked.append(Store(name, str(self._index.path(name)), replace=self._names.is_spoilt(name)))
        self.add(late)
        if asked:
            self._send(ToCourier(store=asked))

    def stored(self, done: Done) -> None:
        place = self._storing.pop(done.name, 0)
        if not done.reason:
            self._names.stored(done.name)
            self.counts["present_blocks" if done.present else "stored_blocks"] += 1
        elif done.reason != _DROPPED:
            self.add([(place, done.name)])

    def removed(self, done: Done) -> None:
        self._removing.discard(done.name)
        if not done.reason:
            self._names.gone(done.name)

    def courier_died(self) -> None:
        """What it was asked for is asked for again."""
        storing, self._storing = self._storing, {}
        self.add((place, name) for name, place in storing.items())
        self._spoilt |= self._removing
        self._removing = set()
