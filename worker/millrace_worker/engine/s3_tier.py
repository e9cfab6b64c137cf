"""Records of the disk cache that a bucket has, too, for all workers of the same fingerprint.

A process of its own talks to the bucket (courier_link.py); a thread tells it what to move, and keeps the disk's cap
(s3_mover.py). Nothing here makes the engine wait for either.
"""

from __future__ import annotations

import threading
import time

import msgspec
import structlog

from millrace_worker.courier_frames import Start

from .bucket_names import BucketNames
from .disk_tier import DiskTier
from .s3_mover import Mover
from .s3_requests import Fetching, S3Limits

log = structlog.get_logger()


class S3Tier:
    """Fetches records onto the disk and stores those that are there.

    All but `wait`, `wait_listed`, `end_fetches` and `close` return at once.
    """

    def __init__(
        self, url: str, endpoint_url: str | None, disk: DiskTier, *, file_bytes: int, limits: S3Limits | None = None
    ) -> None:
        """`url` is "s3://bucket/prefix"; `file_bytes` are those of each record."""
        self.limits = limits or S3Limits()
        self.file_bytes = file_bytes
        self._disk = disk
        self._names = BucketNames(self.limits.most_names)
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self._start = Start(
            bucket=bucket,
            prefix=prefix.strip("/"),
            endpoint_url=endpoint_url,
            record_bytes=file_bytes,
            request_seconds=self.limits.request_seconds,
            list_seconds=self.limits.list_seconds,
            seconds_a_page=self.limits.seconds_a_page,
        )
        self._mover: Mover | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kv-courier", daemon=True)

    def start(self) -> None:
        """Begins, once the disk tier is open."""
        self._disk.on_written, self._disk.on_bad = self.offer, self._was_bad
        self._thread.start()

    def wait_listed(self) -> None:
        """Until it is known what the bucket has, or that it cannot be known now; for a bounded time."""
        end = time.monotonic() + self.limits.start_seconds
        while self._thread.is_alive() and (left := end - time.monotonic()) > 0:
            mover = self._mover
            if mover is None and self._disk.is_taken:
                return
            if mover is None:
                time.sleep(min(left, 0.01))
            elif mover.known.wait(left):
                return
        if self._thread.is_alive():
            log.warning("the bucket of the prefix cache is not listed yet; starting without it")

    @property
    def num_records(self) -> int:
        """In the bucket."""
        return len(self._names)

    @property
    def counts(self) -> dict[str, int]:
        """Blocks and bytes that were moved."""
        return {} if self._mover is None else self._mover.counts

    @property
    def failures(self) -> dict[str, int]:
        """Requests that failed, by what they were and why: "store_denied"."""
        return {} if self._mover is None else dict(self._mover.failures)

    @property
    def is_open(self) -> bool:
        """Whether the bucket could be listed when that was last tried."""
        return self._mover is not None and self._mover.is_open

    @property
    def courier_pid(self) -> int | None:
        return None if self._mover is None else self._mover.courier_pid

    def has(self, name: bytes) -> bool:
        return name in self._names

    def why_not(self) -> str:
        """Why `has` is false, for a counter."""
        if self._mover is None:
            return "closed"
        return "absent" if self._mover.listed.is_set() else "not_listed"

    @property
    def may_fetch(self) -> bool:
        return self._mover is not None and self._mover.may_fetch

    @property
    def fetching_bytes(self) -> int:
        """On their way."""
        return 0 if self._mover is None else self._mover.num_fetching * self.file_bytes

    @property
    def fetch_room(self) -> int:
        """Records that may be asked for now."""
        return max(0, self.limits.most_fetched_bytes - self.fetching_bytes) // self.file_bytes

    def fetch(self, names: list[bytes], chain: list[bytes]) -> Fetching:
        """Begins to fetch records that follow each other; no more than `fetch_room`, and only while `may_fetch`.

        `chain`: all hashes from the prompt's first block to the last of these.
        """
        assert self._mover is not None
        fetching = Fetching(names, chain)
        self._mover.fetch(fetching)
        return fetching

    def give_up(self, fetching: Fetching) -> None:
        """What is not there by now is not wanted any more; nothing is fetched for a while."""
        if self._mover is not None:
            self._mover.give_up(fetching)

    def drop(self, fetching: Fetching) -> None:
        """Nobody waits for these records any more."""
        if self._mover is not None:
            self._mover.drop(fetching)

    def wait(self, seconds: float) -> None:
        """Until there is news of what is fetched, but no longer than that."""
        if self._mover is not None:
            self._mover.progress.wait(seconds)
            self._mover.progress.clear()

    def offer(self, chain: list[bytes]) -> None:
        """Blocks of one prompt, from its first on, were used or written: those on the disk belong into the bucket."""
        mover = self._mover
        if mover is None or not mover.takes_offers:
            return
        found = [
            (place, name)
            for place, name in enumerate(chain)
            if name not in self._names and not mover.is_storing(name) and self._disk.has(name)
        ]
        if found:
            mover.store(found)

    def end_fetches(self) -> None:
        """Nothing is written to the disk from here on."""
        if self._mover is not None and self._thread.is_alive():
            self._mover.end_fetches(self.limits.drop_seconds)

    def close(self) -> None:
        """Stores what is waiting, as far as the time for it lasts, and ends the courier."""
        self._ending.set()
        if self._mover is not None:
            self._mover.end(self.limits.close_seconds)
        if self._thread.is_alive():
            self._thread.join(self.limits.close_seconds + 1.0)
        if self._thread.is_alive() and self._mover is not None:
            self._mover.kill()  # the disk hangs, and so does the thread

    def _was_bad(self, name: bytes) -> None:
        if self._mover is not None:
            self._mover.was_bad(name)

    def _run(self) -> None:
        while not self._disk.wait_open(0.1):
            if self._ending.is_set():
                return
        index = self._disk.index
        if index is None or self._ending.is_set():
            return
        parts = (self._start.prefix, index.fingerprint.hex())
        start = msgspec.structs.replace(self._start, prefix="".join(f"{part}/" for part in parts if part))
        self._mover = Mover(start, index, self._names, self.limits, disk_bytes=self._disk.record_bytes)
        if self._ending.is_set():
            # Looked at once more: `close` may have found no mover that it could end.
            self._mover.end(0.0)
        self._mover.run()
