"""Threads that read records of the disk cache, and what they are asked for."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable

import structlog
import torch

from .disk_index import DiskIndex
from .disk_requests import Reading, TierLimits
from .kv_record import BadRecord, BlockName, read_record

log = structlog.get_logger()

#: Records that are read at once.
_READERS = 4


class DiskReaders:
    """Everything but `wait` returns at once. Until `start` was called, what is asked for waits."""

    def __init__(
        self,
        limits: TierLimits,
        record_bytes: int,
        *,
        new_buffer: Callable[[], torch.Tensor],
        totals: Counter[str],
        on_bad: Callable[[bytes], None],
    ) -> None:
        """Counts in `totals`. `on_bad` is called by a thread: the record of this name was bad, and is deleted."""
        self._limits, self._record_bytes = limits, record_bytes
        self._new_buffer, self._totals, self._on_bad = new_buffer, totals, on_bad
        #: Of records that are asked for and not read yet.
        self.reading_bytes = 0
        self._to_read: queue.SimpleQueue[tuple[Reading, int] | None] = queue.SimpleQueue()
        self._progress = threading.Event()
        self._lock = threading.Lock()
        self._no_reads_until = 0.0
        self._pause = limits.read_pause

    def start(self, index: DiskIndex) -> None:
        """Begins to read what `index` has."""
        for number in range(_READERS):
            threading.Thread(target=self._run, args=(index,), name=f"kv-reader-{number}", daemon=True).start()

    @property
    def may_read(self) -> bool:
        return time.monotonic() >= self._no_reads_until

    @property
    def room(self) -> int:
        """Records that may be asked for now."""
        return max(0, self._limits.most_read_bytes - self.reading_bytes) // self._record_bytes

    def read(self, names: list[BlockName], into: list[torch.Tensor | None] | None) -> Reading:
        """Begins to read blocks that follow each other, no more than `room`; see Reading."""
        reading = Reading(names, into)
        with self._lock:
            self.reading_bytes += len(names) * self._record_bytes
        for number in range(len(names)):
            self._to_read.put((reading, number))
        return reading

    def give_up(self, reading: Reading, *, leave_alone: bool) -> None:
        """What was not read by now is not wanted any more; with `leave_alone` nothing is read for a while."""
        reading.end = len(reading.good)
        if not leave_alone or not self.may_read:
            return  # or it is one of several that waited for the same disk
        self._no_reads_until = time.monotonic() + self._pause
        log.warning("the disk cache does not answer; nothing is read from it for a while", seconds=self._pause)
        self._pause = min(2 * self._pause, self._limits.most_read_pause)

    def wait(self, seconds: float) -> None:
        """Until a read is done, but no longer than that."""
        self._progress.wait(seconds)
        self._progress.clear()

    def close(self) -> None:
        """Ends the threads, after what they were asked for."""
        for _ in range(_READERS):
            self._to_read.put(None)

    def _run(self, index: DiskIndex) -> None:
        while (item := self._to_read.get()) is not None:
            reading, number = item
            reason = None
            if number < reading.end:
                if reading.began is None:
                    reading.began = time.monotonic()
                reason = self._read_one(index, reading, number)
            with self._lock:
                self.reading_bytes -= self._record_bytes
                reading.left -= 1
                if reason is not None and number < reading.end:
                    reading.end, reading.reason = number, reason
                if reading.left == 0:
                    reading.seconds = time.monotonic() - (reading.began or time.monotonic())
                    reading.is_done = True
                    self._progress.set()

    def _read_one(self, index: DiskIndex, reading: Reading, number: int) -> str | None:
        """Why the block was not read; None if it was. A record that proves bad is deleted."""
        name = reading.names[number]
        try:
            buffer = reading.into[number]
            if buffer is None:
                buffer = self._new_buffer()
            try:
                read_record(index.path(name.chain_hash), name, buffer.numpy().data)
            except BadRecord as e:
                index.remove(name.chain_hash)
                log.warning("a bad record of the disk cache was deleted", reason=e.reason)
                self._on_bad(name.chain_hash)
                return e.reason
            except FileNotFoundError:
                index.remove(name.chain_hash)
                return "gone"
        except (OSError, RuntimeError) as e:  # the disk, or no more host memory
            log.warning("a record of the disk cache cannot be read", reason=str(e))
            return "disk_error"
        except Exception:
            # The thread is to live on: others wait for what it reads.
            log.exception("a record of the disk cache was not read")
            return "disk_error"
        reading.buffers[number] = buffer
        self._pause = self._limits.read_pause
        with self._lock:
            self._totals["read_blocks"] += 1
            self._totals["read_bytes"] += buffer.numel()
        return None
