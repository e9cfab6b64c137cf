"""Which blocks are on the disk: the directory itself, listed at the start, and the order in which they were used.

    DIR/lock                                   held by the one process that uses DIR
    DIR/<fingerprint>/identity.json            what the fingerprint is made of, for people and for the log
    DIR/<fingerprint>/ab/c/abcd...ef.kv        a record, named by its chain hash
    DIR/weights/                               digests of weights

Blocks of other fingerprints are never read, but count and are dropped like others.
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from pathlib import Path

import msgspec

from .fingerprint import Identity
from .kv_record import on_disk

_SUFFIX, _IDENTITY = ".kv", "identity.json"
_NAME = re.compile(r"[0-9a-f]{64}\.kv")
#: A block's time of use is written to its file when it is so much older, in nanoseconds.
_STALE = 60 * 10**9


class DirectoryInUse(Exception):
    """Another process uses the directory."""


class _Entry:
    __slots__ = ("size", "stamp")

    def __init__(self, size: int, stamp: int) -> None:
        self.size = size
        #: Of the file's modification, in nanoseconds; that of its use in an earlier process, too.
        self.stamp = stamp


class DiskIndex:
    """Names, sizes and order of use of the records, under a cap of bytes that holds at all times.

    Protected records are dropped when there are no others.
    For any number of threads; the lock is never held while the disk is waited for.
    """

    def __init__(self, directory: Path, identity: Identity, cap_bytes: int) -> None:
        """Lists what is in a directory, and deletes what a killed process left half written and what is over the cap.

        Raises OSError, and DirectoryInUse when another process uses the directory.
        """
        self.cap_bytes = cap_bytes
        self.fingerprint = identity.fingerprint
        #: Fields in which the identity differs from that of the blocks used last, when there are none of its own.
        self.changed: tuple[str, ...] = ()
        self._lock = threading.Lock()
        self._root = directory
        self._namespace = directory / self.fingerprint.hex()
        self._lock_file = (directory / "lock").open("w")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            self._lock_file.close()
            raise DirectoryInUse(f"{directory} is in use by another worker; give each its own directory") from e
        #: By (fingerprint's directory, chain hash), the least recently used first.
        self._entries: OrderedDict[tuple[str, bytes], _Entry] = OrderedDict()
        #: The same of those protected, and all names that are, whether they have a record or not.
        self._guarded: OrderedDict[tuple[str, bytes], _Entry] = OrderedDict()
        self._protected: set[bytes] = set()
        self._used = self._last_stamp = 0
        self._foreign: frozenset[bytes] = frozenset()
        self._list(identity)
        while self._used > self.cap_bytes and self._drop_one(frozenset()):
            pass

    def close(self) -> None:
        """Lets another process use the directory."""
        self._lock_file.close()

    @property
    def used_bytes(self) -> int:
        return self._used

    @property
    def num_records(self) -> int:
        return len(self._entries) + len(self._guarded)

    def path(self, chain_hash: bytes) -> Path:
        """Where the record of this engine's block is, or belongs."""
        return _path(self._namespace, chain_hash)

    def contains(self, chain_hash: bytes) -> bool:
        key = self._namespace.name, chain_hash
        return key in self._entries or key in self._guarded

    def protect(self, chain: Iterable[bytes]) -> None:
        """Records of these names are dropped after all others, also those still to come; for this process."""
        with self._lock:
            self._protected.update(chain)
            self._move(chain, self._entries, self._guarded)

    def unprotect(self, chain: Iterable[bytes]) -> None:
        """They are records like others again, as if used now."""
        with self._lock:
            self._protected.difference_update(chain)
            self._move(chain, self._guarded, self._entries)

    def was_foreign(self, chain_hash: bytes) -> bool:
        """Whether the same tokens were there under another fingerprint when the engine started."""
        return chain_hash in self._foreign

    def reserve(self, size: int, keep: Iterable[bytes]) -> bool:
        """Makes room for a record by dropping those not used for longest, but none in `keep`.

        False when that is not possible. Raises OSError when a file cannot be deleted. What is reserved is given back
        by `release`, or becomes a record's by `add`.
        """
        kept = frozenset(keep)
        while True:
            with self._lock:
                if self._used + size <= self.cap_bytes:
                    self._used += size
                    return True
            if size > self.cap_bytes or not self._drop_one(kept):
                return False

    def release(self, size: int) -> None:
        with self._lock:
            self._used -= size

    def add(self, chain_hash: bytes, size: int) -> None:
        """A record of a reserved size was written, perhaps over one that was there: it is the one used last."""
        with self._lock:
            home, key = self._home(chain_hash), (self._namespace.name, chain_hash)
            before = home.pop(key, None)
            if before is not None:
                self._used -= before.size
            home[key] = _Entry(size, self._next_stamp())

    def remove(self, chain_hash: bytes) -> None:
        """Deletes a record, if it is there."""
        with self._lock:
            entry = self._home(chain_hash).pop((self._namespace.name, chain_hash), None)
        try:
            with suppress(FileNotFoundError):
                self.path(chain_hash).unlink()
        finally:
            # Not looked for again, even where it cannot be deleted: it is bad, and the next start counts it.
            if entry is not None:
                self.release(entry.size)

    def forget_all(self) -> None:
        """Deletes all records of the own fingerprint. Raises OSError at one that cannot be deleted."""
        with self._lock:
            names = [name for space, name in (*self._entries, *self._guarded) if space == self._namespace.name]
        for name in names:
            self.remove(name)

    def touch(self, chain: Iterable[bytes], *, written: Set[bytes] = frozenset()) -> None:
        """Blocks were used, given from the first on: of those that are here the first is the last to be dropped.

        For a later process this is noted in the files' times: at once of those that were just `written`, of the others
        once in a while.
        """
        names = list(chain)
        noted: list[tuple[bytes, int]] = []
        with self._lock:
            for chain_hash in reversed(names):
                home, key = self._home(chain_hash), (self._namespace.name, chain_hash)
                entry = home.get(key)
                if entry is None:
                    continue
                home.move_to_end(key)
                stamp = self._next_stamp()
                if chain_hash not in written and stamp - entry.stamp > _STALE:
                    entry.stamp = stamp
                    noted.append((chain_hash, stamp))
            noted += self._stamps_behind(names, written)
        for chain_hash, stamp in noted:
            with suppress(FileNotFoundError):
                os.utime(self.path(chain_hash), ns=(stamp, stamp))

    def _stamps_behind(self, names: list[bytes], written: Set[bytes]) -> Iterator[tuple[bytes, int]]:
        """Times for new records: each a little before that of the block before it, which need not be noted again."""
        before: int | None = None
        for chain_hash in names if written else ():
            entry = self._home(chain_hash).get((self._namespace.name, chain_hash))
            if entry is None:
                continue
            if chain_hash in written:
                entry.stamp = self._next_stamp() if before is None else before - 1
                yield chain_hash, entry.stamp
            before = entry.stamp

    def _home(self, chain_hash: bytes) -> OrderedDict[tuple[str, bytes], _Entry]:
        """Where an own record of this name is, if there is one."""
        return self._guarded if chain_hash in self._protected else self._entries

    def _move(
        self,
        chain: Iterable[bytes],
        source: OrderedDict[tuple[str, bytes], _Entry],
        target: OrderedDict[tuple[str, bytes], _Entry],
    ) -> None:
        # Backwards: of a chain the tail goes before the head.
        for chain_hash in reversed(list(chain)):
            key = self._namespace.name, chain_hash
            entry = source.pop(key, None)
            if entry is not None:
                target[key] = entry

    def _next_stamp(self) -> int:
        self._last_stamp = max(self._last_stamp + 1, time.time_ns())
        return self._last_stamp

    def _drop_one(self, kept: frozenset[bytes]) -> bool:
        """Deletes the record not used for longest, of those not protected if there are any; it counts until it is gone.

        Raises OSError when it cannot be deleted.
        """
        with self._lock:
            own = self._namespace.name
            key = next((key for key in self._entries if key[0] != own or key[1] not in kept), None)
            if key is None:
                key = next((key for key in self._guarded if key[1] not in kept), None)
            if key is None:
                return False
            entry = self._entries.pop(key, None) or self._guarded.pop(key)
        try:
            _path(self._root / key[0], key[1]).unlink(missing_ok=True)
        except OSError:
            with self._lock:
                home = self._home(key[1]) if key[0] == own else self._entries
                home[key] = entry
                home.move_to_end(key, last=False)
            raise
        self.release(entry.size)
        return True

    def _list(self, identity: Identity) -> None:
        found: list[tuple[int, tuple[str, bytes], int]] = []
        for namespace in self._root.iterdir():
            if len(namespace.name) == 2 * len(self.fingerprint) and namespace.is_dir():
                found += _records(namespace)
        found.sort()
        for stamp, key, size in found:
            self._entries[key] = _Entry(size, stamp)
            self._used += size
        self._last_stamp = found[-1][0] if found else 0
        own = self._namespace.name
        self._foreign = frozenset(chain_hash for name, chain_hash in self._entries if name != own)
        if found and not any(name == own for name, _ in self._entries):
            self.changed = _changed(self._root / found[-1][1][0], identity)
        self._namespace.mkdir(exist_ok=True)
        (self._namespace / _IDENTITY).write_bytes(msgspec.json.encode(identity))


def _path(namespace: Path, chain_hash: bytes) -> Path:
    name = chain_hash.hex()
    return namespace / name[:2] / name[2] / (name + _SUFFIX)


def _records(namespace: Path) -> Iterator[tuple[int, tuple[str, bytes], int]]:
    """(time of use, key, size) of the records of one fingerprint; what is half written is deleted."""
    for folder, _, files in os.walk(namespace):
        for name in files:
            path = Path(folder) / name
            if _NAME.fullmatch(name):
                chain_hash = bytes.fromhex(name.removesuffix(_SUFFIX))
                with suppress(FileNotFoundError):  # others may delete what they like
                    state = path.stat()
                    yield state.st_mtime_ns, (namespace.name, chain_hash), on_disk(state.st_size)
            elif name != _IDENTITY:
                path.unlink(missing_ok=True)


def _changed(namespace: Path, identity: Identity) -> tuple[str, ...]:
    try:
        return identity.differs(msgspec.json.decode((namespace / _IDENTITY).read_bytes(), type=Identity))
    except (OSError, msgspec.MsgspecError):
        return ("unknown",)
