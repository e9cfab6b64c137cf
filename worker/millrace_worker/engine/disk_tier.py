"""KV blocks on a local disk. Threads do all that may wait for the disk; nothing here makes the engine wait for it."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import structlog
import torch

from .disk_index import DirectoryInUse, DiskIndex
from .disk_readers import DiskReaders
from .disk_requests import Reading, TierLimits, Writing
from .fingerprint import Identity, NoFingerprint
from .kv_record import BlockName, record_bytes, write_record

log = structlog.get_logger()

#: Batches of writes and notes of use that may wait.
_MOST_QUEUED = 1024


class DiskTier:
    """Reads and writes records of one fingerprint. Everything but `close` returns at once."""

    name = "disk"

    def __init__(
        self,
        directory: Path,
        cap_bytes: int,
        *,
        block_size: int,
        block_bytes: int,
        new_buffer: Callable[[], torch.Tensor],
        limits: TierLimits | None = None,
    ) -> None:
        self.limits = limits or TierLimits()
        self.record_bytes = record_bytes(block_size, block_bytes)
        self._directory, self._cap_bytes = directory, cap_bytes
        self._index: DiskIndex | None = None
        self._protected: set[bytes] = set()
        #: Whether there is an index is known; or that another process has the directory for now.
        self._opened, self._tried = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._to_write: queue.Queue[Writing | list[bytes] | None] = queue.Queue(_MOST_QUEUED)
        #: Hashes that are to be written.
        self._queued: set[bytes] = set()
        self._writing_bytes = 0
        self._no_writes_until = 0.0
        #: When the write began that is under way.
        self._write_began: float | None = None
        self._writer: threading.Thread | None = None
        # All keys are there from the start, so that the engine may look while a thread counts.
        self.totals = Counter(dict.fromkeys(("read_blocks", "read_bytes", "written_blocks", "written_bytes"), 0))
        #: Blocks by reason.
        self.unwritten = Counter(dict.fromkeys(("cap", "disk_error", "queue_full"), 0))
        #: Called by threads: blocks of this chain were written; the record of this name was bad, and is deleted.
        self.on_written: Callable[[list[bytes]], None] = lambda chain: None
        self.on_bad: Callable[[bytes], None] = lambda chain_hash: None
        self._readers = DiskReaders(
            self.limits,
            self.record_bytes,
            new_buffer=new_buffer,
            totals=self.totals,
            on_bad=lambda chain_hash: self.on_bad(chain_hash),
        )

    def start(self, identity: Callable[[], Identity]) -> None:
        """Opens the directory in the background, for what `identity` then finds; waits for a while."""
        self._writer = threading.Thread(target=self._run_writer, args=(identity,), name="kv-writer", daemon=True)
        self._writer.start()
        if not self._tried.wait(self.limits.open_seconds):
            log.warning("the disk cache is not open yet; starting without it", directory=str(self._directory))

    def wait_open(self, seconds: float) -> bool:
        """Whether it is known by then what there is: see `index`."""
        return self._opened.wait(seconds)

    @property
    def is_taken(self) -> bool:
        """Whether another process has the directory, which is used once it is free."""
        return self._tried.is_set() and not self._opened.is_set()

    @property
    def index(self) -> DiskIndex | None:
        """None until it is open, and when it cannot be."""
        return self._index

    @property
    def reading_bytes(self) -> int:
        """Of records that are asked for and not read yet."""
        return self._readers.reading_bytes

    def has(self, chain_hash: bytes) -> bool:
        """Whether there is a record of this name that has not proved bad."""
        return self._index is not None and self._index.contains(chain_hash)

    def has_or_will(self, chain_hash: bytes) -> bool:
        """... or will be."""
        return chain_hash in self._queued or self.has(chain_hash)

    def why_not(self, chain_hash: bytes) -> str:
        """Why `has` is false, for a counter."""
        if self._index is None:
            return "closed"
        return "fingerprint" if self._index.was_foreign(chain_hash) else "absent"

    def protect(self, chain: list[bytes]) -> None:
        """Records of these names are dropped after all others, also those still to be written."""
        with self._lock:
            self._protected.update(chain)
            if self._index is not None:
                self._index.protect(chain)

    def unprotect(self, chain: list[bytes]) -> None:
        """They are records like others again."""
        with self._lock:
            self._protected.difference_update(chain)
            if self._index is not None:
                self._index.unprotect(chain)

    def forget_all(self) -> None:
        """Deletes all records of its fingerprint. For benchmarks; nothing may be on its way. Raises OSError."""
        if self._index is not None:
            self._index.forget_all()

    @property
    def may_read(self) -> bool:
        return self._readers.may_read

    @property
    def read_room(self) -> int:
        """Records that may be asked for now."""
        return self._readers.room

    @property
    def write_room(self) -> int:
        """Records that may be given to `write` now; none while the disk does not take them."""
        began, now = self._write_began, time.monotonic()
        hangs = began is not None and now - began > self.limits.read_seconds
        if self._index is None or hangs or now < self._no_writes_until or self._to_write.full():
            return 0
        return max(0, self.limits.most_written_bytes - self._writing_bytes) // self.record_bytes

    def read(self, names: list[BlockName], into: list[torch.Tensor | None] | None = None) -> Reading:
        """Begins to read blocks that follow each other, no more than `read_room`; see Reading."""
        return self._readers.read(names, into)

    def give_up(self, reading: Reading, *, leave_alone: bool = True) -> None:
        """What was not read by now is not wanted any more; with `leave_alone` nothing is read for a while."""
        self._readers.give_up(reading, leave_alone=leave_alone)

    def write(self, writing: Writing) -> None:
        """Begins to write blocks; no more than `write_room`."""
        size = len(writing.names) * self.record_bytes
        with self._lock:
            self._writing_bytes += size
        self._queued.update(name.chain_hash for name in writing.names)
        try:
            self._to_write.put_nowait(writing)
        except queue.Full:
            self._forget(writing, "queue_full")

    def touch(self, chain: list[bytes]) -> None:
        """Blocks of one prompt, from its first on, were used, wherever they were found."""
        try:
            self._to_write.put_nowait(chain)
        except queue.Full:
            return  # an order of use that is a little out of date

    def wait(self, seconds: float) -> None:
        """Until a read is done, but no longer than that."""
        self._readers.wait(seconds)

    def close(self) -> None:
        """Writes what is waiting, as far as the time for it lasts, and lets go of the directory."""
        if self._writer is None:
            return
        try:
            self._to_write.put(None, timeout=self.limits.close_seconds)
        except queue.Full:
            return  # it hangs; so would everything else
        if self._tried.is_set():  # else it reads all weights, or waits for a directory that hangs
            self._writer.join(self.limits.close_seconds)
        self._readers.close()

    def _run_writer(self, identity: Callable[[], Identity]) -> None:
        index: DiskIndex | None = None
        try:
            # What is in here is as private as the prompts.
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            index = self._lock_and_list(identity())
        except (NoFingerprint, OSError) as e:
            log.warning("no disk cache", directory=str(self._directory), reason=_why(e))
        finally:
            with self._lock:
                if index is not None:
                    index.protect(self._protected)
                self._index = index
            self._opened.set()
            self._tried.set()
        if index is not None:
            self._readers.start(index)
            self._say_open(index)
        while (item := self._to_write.get()) is not None:
            if index is None:
                continue
            try:
                if isinstance(item, Writing):
                    self._write(index, item)
                else:
                    self._touch(index, item)
            except Exception:
                log.exception("a block of the disk cache was not written")
        if index is not None:
            index.close()

    def _lock_and_list(self, identity: Identity) -> DiskIndex | None:
        """The directory, once nobody else uses it; None when the engine ended before that."""
        while True:
            try:
                return DiskIndex(self._directory, identity, self._cap_bytes)
            except DirectoryInUse as e:
                if not self._tried.is_set():
                    log.warning("no disk cache for now; it is used once its directory is free", reason=str(e))
                    self._tried.set()
            try:
                # Nothing but the end is asked of a tier that is not open.
                self._to_write.get(timeout=self.limits.lock_seconds)
                self._to_write.put(None)
                return None
            except queue.Empty:
                continue

    def _say_open(self, index: DiskIndex) -> None:
        log.info(
            "disk cache open",
            directory=str(self._directory),
            fingerprint=index.fingerprint.hex()[:16],
            blocks=index.num_records,
            bytes=index.used_bytes,
            changed=index.changed,
        )

    def _write(self, index: DiskIndex, writing: Writing) -> None:
        wrote, kept = 0, frozenset(writing.chain)
        self._write_began = time.monotonic()
        try:
            for name, buffer in zip(writing.names, writing.buffers, strict=True):
                if not index.contains(name.chain_hash) and not self._write_one(index, kept, name, buffer):
                    self.unwritten["cap"] += len(writing.names) - wrote
                    break
                wrote += 1
                self._write_began = time.monotonic()
            index.touch(writing.chain, written={name.chain_hash for name in writing.names})
            self.on_written(writing.chain)
        except OSError as e:
            self.unwritten["disk_error"] += len(writing.names) - wrote
            self._no_writes_until = time.monotonic() + self.limits.write_pause
            log.warning(
                "the disk cache takes nothing for a while",
                directory=str(self._directory),
                seconds=self.limits.write_pause,
                reason=str(e),
            )
        finally:
            self._write_began = None
            self._forget(writing)

    def _write_one(self, index: DiskIndex, kept: frozenset[bytes], name: BlockName, buffer: torch.Tensor) -> bool:
        if self.record_bytes > index.cap_bytes or not index.reserve(self.record_bytes, kept):
            return False
        try:
            path = index.path(name.chain_hash)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_record(path, name, buffer.numpy().data)
        except BaseException:
            index.release(self.record_bytes)
            raise
        index.add(name.chain_hash, self.record_bytes)
        self.totals["written_blocks"] += 1
        self.totals["written_bytes"] += buffer.numel()
        return True

    def _touch(self, index: DiskIndex, chain: list[bytes]) -> None:
        try:
            index.touch(chain)
        except OSError as e:
            log.warning("the time of use of a cached block cannot be noted", reason=str(e))

    def _forget(self, writing: Writing, reason: str | None = None) -> None:
        if reason is not None:
            self.unwritten[reason] += len(writing.names)
        self._queued.difference_update(name.chain_hash for name in writing.names)
        with self._lock:
            self._writing_bytes -= len(writing.names) * self.record_bytes
        writing.is_done = True


def _why(error: NoFingerprint | OSError) -> str:
    """Why there is no disk cache, and what to do where it is the directory."""
    if isinstance(error, NoFingerprint):
        return str(error)
    return f"{error}; --disk-cache-dir has to be a directory that this worker may write to, on a disk with room"
