"""Which records a bucket has, as far as its listings and our own requests tell."""

from __future__ import annotations

import structlog

from millrace_worker.courier_frames import NAME_BYTES, Page

log = structlog.get_logger()


class BucketNames:
    """One thread changes it, any may look."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._names: set[bytes] = set()
        #: Of the listing that is under way, and what was stored meanwhile.
        self._fresh: set[bytes] = set()
        self._stored: set[bytes] = set()
        #: Objects that proved to be no good: not to be fetched again.
        self._spoilt: set[bytes] = set()

    def __contains__(self, name: bytes) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    def take(self, page: Page) -> None:
        """A part of a listing. Other workers' records count from now on; those that are gone, until its last part."""
        if page.first:
            self._fresh, self._stored = set(), set()
        starts = range(0, len(page.names), NAME_BYTES)
        names = {page.names[start : start + NAME_BYTES] for start in starts} - self._spoilt
        if len(self._fresh) + len(names) > self._most:
            log.warning("the bucket holds more records than are kept in memory", most=self._most)
            names = set()
        self._fresh |= names
        self._names |= names
        if page.last:
            self._names = self._fresh | self._stored

    def stored(self, name: bytes) -> None:
        """A good record of this name is there."""
        self._spoilt.discard(name)
        self._stored.add(name)
        self._names.add(name)

    def gone(self, name: bytes) -> None:
        """There is none."""
        self._spoilt.discard(name)
        self._forget(name)

    def spoil(self, name: bytes) -> None:
        """What is there is no good."""
        self._forget(name)
        self._spoilt.add(name)

    def is_spoilt(self, name: bytes) -> bool:
        return name in self._spoilt

    def _forget(self, name: bytes) -> None:
        for names in (self._names, self._fresh, self._stored):
            names.discard(name)
