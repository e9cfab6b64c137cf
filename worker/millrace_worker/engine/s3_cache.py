"""What of the prompts is fetched from a bucket, to be read from the disk then: the engine's half, which never waits."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .disk_tier import DiskTier
from .host_tier import HostTier
from .load_costs import LoadCosts
from .s3_requests import Fetching
from .s3_tier import S3Tier
from .sequence import Sequence

#: A fetch may take so many times what it should.
_TIMES_ESTIMATE = 3.0


@dataclass(frozen=True, slots=True)
class _Fetch:
    fetching: Fetching
    began: float
    deadline: float
    #: seq_ids of those that wait for it.
    waiting: set[int] = field(default_factory=set)


class NoS3:
    """There is no bucket."""

    name = "s3"
    is_busy = False
    stats: dict[str, Any] = {}
    is_open: dict[str, int] = {}
    loads: Counter[str] = Counter()
    recomputes: Counter[str] = Counter()
    num_blocks = num_bytes = num_ended = 0

    def has(self, chain_hash: bytes) -> bool:
        return False

    def hold_back(self, seq: Sequence, missing: list[bytes]) -> bool:
        return False

    def started(self, seq: Sequence, chain: list[bytes]) -> set[bytes]:
        return set()

    def gone(self, seq: Sequence) -> None: ...

    def poll(self) -> None: ...

    def wait(self, seconds: float) -> None: ...

    def wait_listed(self) -> None: ...

    def end_fetches(self) -> None: ...

    def close(self) -> None: ...


class S3Cache:
    """Beside the disk cache's half. Whatever is fetched is on the disk then, and read from there."""

    name = "s3"

    def __init__(
        self,
        tier: S3Tier,
        disk: DiskTier,
        costs: LoadCosts,
        *,
        block_size: int,
        host: HostTier | None = None,
    ) -> None:
        self.tier = tier
        self._disk, self._host, self._costs, self._block_size = disk, host, costs, block_size
        self._fetches: list[_Fetch] = []
        #: By hash of a block that is on its way.
        self._on_way: dict[bytes, _Fetch] = {}
        #: By seq_id of a waiting sequence.
        self._waits_for: dict[int, _Fetch] = {}
        #: seq_ids of sequences for which nothing is fetched (any more) until they have started.
        self._settled: set[int] = set()
        #: Hashes of blocks that were fetched for a sequence which has not started yet, by seq_id.
        self._fetched_for: dict[int, set[bytes]] = {}
        #: Sequences that records were fetched for, or for which computing was quicker, under "s3".
        self.loads: Counter[str] = Counter()
        self.recomputes: Counter[str] = Counter()
        self._misses: Counter[str] = Counter()
        #: Fetches that have ended, one way or another.
        self.num_ended = 0

    @property
    def is_busy(self) -> bool:
        return bool(self._fetches)

    @property
    def stats(self) -> dict[str, Any]:
        """Fields of CacheStats."""
        return {"s3_misses": dict(self._misses), "s3_failures": self.tier.failures, **self.tier.counts}

    @property
    def is_open(self) -> dict[str, int]:
        """Whether the bucket is, under "s3"."""
        return {"s3": int(self.tier.is_open)}

    @property
    def num_blocks(self) -> int:
        """In the bucket."""
        return self.tier.num_records

    @property
    def num_bytes(self) -> int:
        return self.tier.num_records * self.tier.file_bytes

    def has(self, chain_hash: bytes) -> bool:
        """Whether the bucket has a record of this name, as far as is known."""
        return self.tier.has(chain_hash)

    def hold_back(self, seq: Sequence, missing: list[bytes]) -> bool:
        """Whether `seq` waits for records on their way to the disk; `missing` are not in the pool."""
        seq_id = seq.seq_id
        fetch = self._waits_for.get(seq_id)
        if fetch is not None:
            if not fetch.fetching.is_done:
                return True
            del self._waits_for[seq_id]
            self._fetched_for.setdefault(seq_id, set()).update(fetch.fetching.good)
        if seq_id in self._settled:
            return False
        here = next((i for i, name in enumerate(missing) if not self._is_here(name)), len(missing))
        if here == len(missing):
            return False
        fetch = self._coming(missing[here])
        if fetch is None:
            self._settled.add(seq_id)
            fetch = self._begin(seq, missing, here)
        if fetch is None:
            return False
        fetch.waiting.add(seq_id)
        self._waits_for[seq_id] = fetch
        return True

    def started(self, seq: Sequence, chain: list[bytes]) -> set[bytes]:
        """`seq` runs now: which blocks were fetched for it. `chain`: hashes of its prompt, which came up again."""
        self._settled.discard(seq.seq_id)
        if chain:
            self.tier.offer(chain)
        return self._fetched_for.pop(seq.seq_id, set())

    def gone(self, seq: Sequence) -> None:
        """`seq` ended, running or waiting."""
        self._settled.discard(seq.seq_id)
        self._fetched_for.pop(seq.seq_id, None)
        fetch = self._waits_for.pop(seq.seq_id, None)
        if fetch is not None:
            fetch.waiting.discard(seq.seq_id)
            if not fetch.waiting and not fetch.fetching.is_done:
                self.tier.drop(fetch.fetching)

    def poll(self) -> None:
        """Takes in what was fetched meanwhile."""
        if not self._fetches:
            return
        now = time.monotonic()
        for fetch in list(self._fetches):
            fetching = fetch.fetching
            if not fetching.is_done and now > fetch.deadline:
                self.tier.give_up(fetching)
                # That it is slow is to be learnt, too.
                size = max(1, len(fetching.good)) * self.tier.file_bytes
                self._costs.observe_read("s3", size, now - fetch.began)
            if fetching.is_done:
                self._end(fetch)

    def wait(self, seconds: float) -> None:
        """Until there is news of what is fetched, but no longer than that."""
        self.tier.wait(seconds)

    def wait_listed(self) -> None:
        """Until it is known what the bucket has; for a bounded time."""
        self.tier.wait_listed()

    def end_fetches(self) -> None:
        """Nothing is written to the disk from here on."""
        self.tier.end_fetches()

    def close(self) -> None:
        self.tier.close()

    def _coming(self, name: bytes) -> _Fetch | None:
        fetch = self._on_way.get(name)
        return None if fetch is None or fetch.fetching.is_done else fetch

    def _is_here(self, name: bytes) -> bool:
        """Whether a faster tier has the block."""
        return self._disk.has(name) or (self._host is not None and self._host.has(name))

    def _begin(self, seq: Sequence, missing: list[bytes], here: int) -> _Fetch | None:
        names, reason = self._worth_fetching(missing, here)
        if reason is not None:
            self._misses[reason] += 1
        if not names:
            return None
        chain = seq.block_hashes[: seq.block_hashes.index(names[-1]) + 1]
        size = self.tier.fetching_bytes + len(names) * self.tier.file_bytes
        estimate = self._costs.read_seconds("s3", size) or 0.0
        now = time.monotonic()
        seconds = max(self.tier.limits.fetch_seconds, _TIMES_ESTIMATE * estimate)
        fetch = _Fetch(self.tier.fetch(names, chain), now, now + seconds)
        self.loads["s3"] += 1
        self._fetches.append(fetch)
        self._on_way.update(dict.fromkeys(names, fetch))
        return fetch

    def _worth_fetching(self, missing: list[bytes], here: int) -> tuple[list[bytes], str | None]:
        """Which records to fetch, and why none; the first `here` blocks are in a faster tier."""
        tier = self.tier
        if not tier.has(missing[here]):
            return [], tier.why_not()
        if not tier.may_fetch:
            return [], "paused"
        names, run = self._run_from(missing[here:])
        if not names:
            return [], "no_room"
        costs, read = self._costs, self._disk.reading_bytes + run * self._disk.record_bytes
        fetch = costs.read_seconds("s3", tier.fetching_bytes + len(names) * tier.file_bytes)
        recompute = costs.recompute_seconds(run * self._block_size)
        if fetch is not None and recompute is not None:
            fetch += (costs.read_seconds("disk", read) or 0.0) + (costs.read_seconds("cpu", read) or 0.0)
            if fetch >= recompute and not costs.refuse("s3"):
                self.recomputes["s3"] += 1
                return [], "slower"
        return names, None

    def _run_from(self, missing: list[bytes]) -> tuple[list[bytes], int]:
        """Of blocks that can be had, from the first on: which of them are to be fetched, and how many there are."""
        names: list[bytes] = []
        room = self.tier.fetch_room
        for count, name in enumerate(missing):
            if self._is_here(name):
                continue
            if len(names) == room or self._coming(name) is not None or not self.tier.has(name):
                return names, count
            names.append(name)
        return names, len(missing)

    def _end(self, fetch: _Fetch) -> None:
        fetching = fetch.fetching
        self.num_ended += 1
        self._fetches.remove(fetch)
        for name in fetching.names:
            if self._on_way.get(name) is fetch:
                del self._on_way[name]
        if fetching.reason is not None:
            self._misses[fetching.reason] += 1
        elif fetching.seconds > 0:
            self._costs.observe_read("s3", len(fetching.names) * self.tier.file_bytes, fetching.seconds)
