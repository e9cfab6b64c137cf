"""Records on their way from the bucket into the disk cache's directory, under its cap."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import structlog

from millrace_worker.courier_frames import Done, Fetch, ToCourier

from .bucket_names import BucketNames
from .disk_index import DiskIndex
from .s3_requests import Fetching

log = structlog.get_logger()

#: Names of records that were fetched lately, and may still prove bad.
_MOST_UNPROVED = 65_536


class Downloads:
    """For the tier's thread, which may wait for the disk. Room is reserved before a record is asked for."""

    def __init__(
        self, index: DiskIndex, names: BucketNames, file_bytes: int, disk_bytes: int, send: Callable[[ToCourier], None]
    ) -> None:
        """`file_bytes` are a record's, `disk_bytes` what it takes of the disk."""
        self.counts = Counter(dict.fromkeys(("fetched_blocks", "fetched_bytes"), 0))
        self._index, self._names, self._send = index, names, send
        self._file_bytes, self._disk_bytes = file_bytes, disk_bytes
        self._fetchings: dict[bytes, list[Fetching]] = {}
        self._unproved: dict[bytes, None] = {}

    def __len__(self) -> int:
        """Records that the courier was asked for."""
        return len(self._fetchings)

    def begin(self, fetching: Fetching, *, refused: str = "") -> None:
        """Asks for its records, or, with a reason why there can be none, for nothing."""
        others = {other for waiting in self._fetchings.values() for other in waiting}
        keep = frozenset(fetching.chain).union(*(other.chain for other in others))
        asked: list[Fetch] = []
        for name in fetching.names:
            if self._index.contains(name):
                fetching.settle(name)
            elif name in self._fetchings:
                self._fetchings[name].append(fetching)
            else:
                refused = refused or self._reserve(keep)
                if refused:
                    fetching.settle(name, refused)
                else:
                    self._fetchings[name] = [fetching]
                    asked.append(Fetch(name, str(self._index.path(name))))
        if asked:
            self._send(ToCourier(fetch=asked))

    def drop(self, names: Iterable[bytes]) -> None:
        """Nobody waits for these any more."""
        dropped = [name for name in names if name in self._fetchings]
        if dropped:
            self._send(ToCourier(drop=dropped))

    def drop_all(self) -> None:
        self.drop(list(self._fetchings))

    def answered(self, done: Done) -> None:
        waiting = self._fetchings.pop(done.name, [])
        if not waiting:
            return
        if done.reason:
            self._index.release(self._disk_bytes)
        else:
            self._add(done.name)
        for fetching in waiting:
            fetching.settle(done.name, done.reason, done.began, done.ended)
            if done.reason:
                alone = [name for name in fetching.rest if self._fetchings.get(name) == [fetching]]
                self.drop(alone)

    def courier_died(self) -> None:
        """What it has put into its place by then counts, and what it left half written goes."""
        for name in list(self._fetchings):
            path = self._index.path(name)
            with suppress(OSError):
                for half in path.parent.glob(path.stem + ".tmp*"):
                    if half.suffix != f".tmp{os.getpid()}":
                        half.unlink()
            self.answered(Done(name, "" if _length(path) == self._file_bytes else "courier_died"))

    def was_bad(self, name: bytes) -> bool:
        """Whether a record that proved bad, and is deleted by now, came from the bucket."""
        return self._unproved.pop(name, 0) is None

    def _add(self, name: bytes) -> None:
        self._index.add(name, self._disk_bytes)
        self.counts["fetched_blocks"] += 1
        self.counts["fetched_bytes"] += self._file_bytes
        self._unproved[name] = None
        if len(self._unproved) > _MOST_UNPROVED:
            del self._unproved[next(iter(self._unproved))]

    def _reserve(self, keep: frozenset[bytes]) -> str:
        """Why there is no room for a record; "" when there is."""
        try:
            return "" if self._index.reserve(self._disk_bytes, keep) else "cap"
        except OSError as e:
            log.warning("the disk cache has no room for a record of the bucket", reason=str(e))
            return "disk_error"


def _length(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
