"""What of the prompts is kept on disk and what is read back: the engine's half, which never waits for the disk."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog

from .block_copies import BlockCopies, Copy
from .block_pool import BlockPool
from .cache_stats import CacheStats
from .disk_requests import Reading, Writing
from .disk_tier import DiskTier
from .frequency_sketch import FrequencySketch
from .kv_record import BlockName
from .load_costs import LoadCosts
from .prefix_cache import root_of
from .s3_cache import NoS3, S3Cache
from .sequence import Sequence

log = structlog.get_logger()

#: Blocks are written once they were seen so often: a prompt that comes once is not.
_SIGHTINGS = 2
#: A read may take so many times what it should.
_TIMES_ESTIMATE = 3.0


@dataclass(frozen=True, slots=True)
class _Load:
    seq: Sequence
    reading: Reading
    began: float
    deadline: float


@dataclass(frozen=True, slots=True)
class _Inward:
    load: _Load
    copy: Copy


@dataclass(frozen=True, slots=True)
class _Outward:
    """Blocks to be copied out, of which it holds a reference each; `copy` once that has begun."""

    chain: list[bytes]
    names: list[BlockName]
    blocks: list[int]
    copy: Copy | None = None


class DiskCache:
    """A LowerTier. What is read becomes a cached block of the pool, and so a prefix hit like any other."""

    def __init__(
        self,
        tier: DiskTier,
        pool: BlockPool,
        copies: BlockCopies,
        *,
        block_size: int,
        s3: S3Cache | NoS3 | None = None,
    ) -> None:
        """`s3`: where blocks that are not on the disk may be fetched from."""
        self.costs = LoadCosts()
        self.s3 = NoS3() if s3 is None else s3
        self._tier, self._pool, self._copies, self._block_size = tier, pool, copies, block_size
        self._sketch = FrequencySketch()
        #: By seq_id.
        self._loads: dict[int, _Load] = {}
        #: Waiting sequences whose blocks are being read or copied in, by seq_id.
        self._held_back: set[int] = set()
        #: Hashes that are being read: a second sequence that needs one waits for it.
        self._loading: set[bytes] = set()
        self._inward: list[_Inward] = []
        self._wanted: list[_Outward] = []
        self._outward: list[_Outward] = []
        #: Hashes of the two above.
        self._leaving: set[bytes] = set()
        #: How many blocks a waiting sequence had when it was last looked up, by seq_id: not twice for the same.
        self._looked_up: dict[int, int] = {}
        #: Hashes of blocks that were read for a sequence which has not started yet, by seq_id.
        self._read_for: dict[int, set[bytes]] = {}
        self._counts: Counter[str] = Counter()
        self._misses: Counter[str] = Counter()
        self._unwritten: Counter[str] = Counter()

    @property
    def held(self) -> Iterable[list[int]]:
        yield from (inward.copy.blocks for inward in self._inward)
        yield from (outward.blocks for outward in (*self._wanted, *self._outward))

    @property
    def stats(self) -> CacheStats:
        index = self._tier.index
        counts: dict[str, Any] = {**self._counts, **self._tier.totals, **self.s3.stats}
        return CacheStats(
            disk_blocks=0 if index is None else index.num_records,
            disk_bytes=0 if index is None else index.used_bytes,
            changed_identity=() if index is None else index.changed,
            misses=dict(self._misses),
            unwritten=dict(self._unwritten + self._tier.unwritten),
            **counts,
        )

    def hold_back(self, seq: Sequence, num_hits: int) -> bool:
        if seq.seq_id in self._held_back:
            return True
        full = (seq.num_tokens - 1) // self._block_size
        missing = seq.block_hashes[num_hits:full]
        if not missing or self._looked_up.get(seq.seq_id, -1) >= num_hits:
            return False
        if missing[0] in self._loading:
            return True
        if self.s3.hold_back(seq, missing, self.costs):
            return True
        again = seq.seq_id in self._looked_up
        self._looked_up[seq.seq_id] = num_hits
        count, reason = self._worth_loading(missing)
        if reason is not None and not again:
            self._misses[reason] += 1
        if count == 0:
            return False
        self._counts["loads"] += not again
        names = [self._name(seq, number) for number in range(num_hits, num_hits + count)]
        estimate = self.costs.load_seconds(count * self._tier.record_bytes, self._tier.reading_bytes) or 0.0
        now = time.monotonic()
        deadline = now + max(self._tier.limits.read_seconds, _TIMES_ESTIMATE * estimate)
        self._loads[seq.seq_id] = _Load(seq, self._tier.read(names), now, deadline)
        self._held_back.add(seq.seq_id)
        self._loading.update(missing[:count])
        return True

    def started(self, seq: Sequence, num_hits: int, *, first: bool) -> None:
        self._looked_up.pop(seq.seq_id, None)
        read = self._read_for.pop(seq.seq_id, set())
        chain = seq.block_hashes[: seq.num_prompt // self._block_size]
        on_disk = bool(chain) and self._tier.has(chain[0])
        fetched = self.s3.started(seq, chain if first and on_disk else [])
        if not first:
            return
        size = self._block_size
        found = [block_hash for block_hash in seq.block_hashes[:num_hits] if block_hash in read]
        cached = min(num_hits * size, seq.num_prompt)
        below = min(len(found) * size, cached)
        s3 = min(sum(block_hash in fetched for block_hash in found) * size, below)
        self._counts.update(prompt_tokens=seq.num_prompt, gpu_hit_tokens=cached - below)
        self._counts.update(disk_hit_tokens=below - s3, s3_hit_tokens=s3)
        counts = self._sketch.add(chain)
        self._keep(seq, np.flatnonzero(counts[:num_hits] >= _SIGHTINGS).tolist())
        if on_disk:
            self._tier.touch(chain)

    def computed(self, seq: Sequence, first: int, end: int) -> None:
        hashes = seq.block_hashes[first : min(end, seq.num_prompt // self._block_size)]
        if hashes:
            seen = np.flatnonzero(self._sketch.counts(hashes) >= _SIGHTINGS)
            self._keep(seq, (seen + first).tolist())

    def gone(self, seq: Sequence) -> None:
        self._looked_up.pop(seq.seq_id, None)
        self._read_for.pop(seq.seq_id, None)
        self._held_back.discard(seq.seq_id)
        self.s3.gone(seq)
        load = self._loads.pop(seq.seq_id, None)
        if load is not None:
            load.reading.end = 0
            self._end_load(load)

    def give_back(self) -> None:
        for wanted in self._wanted:
            self._unwritten["no_room"] += len(wanted.blocks)
            self._let_go(wanted)
        self._wanted = []
        for copy in (*(inward.copy for inward in self._inward), *(o.copy for o in self._outward)):
            if copy is not None:
                copy.wait()
        self._take_copies()

    def poll(self) -> None:
        self.s3.poll()
        if self._loads:
            now = time.monotonic()
            for load in list(self._loads.values()):
                if load.reading.is_done or now > load.deadline:
                    self._place(load)
        self._take_copies()

    def flush(self) -> None:
        for wanted in self._wanted:
            try:
                copy = self._copies.to_host(wanted.blocks)
            except RuntimeError as e:
                log.warning("no host memory for blocks of the disk cache", reason=str(e).splitlines()[0])
                self._unwritten["no_memory"] += len(wanted.blocks)
                self._let_go(wanted)
                continue
            self._outward.append(_Outward(wanted.chain, wanted.names, wanted.blocks, copy))
        self._wanted = []
        self._take_copies()

    def wait(self, seconds: float) -> None:
        if self._loads:
            self._tier.wait(seconds)
        elif self.s3.is_busy:
            self.s3.wait(seconds)

    def observe_step(self, prompt_tokens: int, other_tokens: int, seconds: float) -> None:
        self.costs.observe_step(prompt_tokens, other_tokens, seconds)
        self.s3.observe_step(prompt_tokens, other_tokens, seconds)

    def close(self) -> None:
        self.give_back()
        self.s3.end_fetches()
        self._tier.close()
        self.s3.close()

    def _worth_loading(self, missing: list[bytes]) -> tuple[int, str | None]:
        """How many of these blocks to read, and why not all."""
        tier = self._tier
        on_disk = next((i for i, name in enumerate(missing) if not tier.has(name)), len(missing))
        if on_disk == 0:
            return 0, tier.why_not(missing[0])
        if not tier.may_read:
            return 0, "paused"
        count = min(on_disk, tier.read_room, self._pool.num_free)
        if count == 0:
            return 0, "no_room"
        num_bytes, tokens = count * tier.record_bytes, count * self._block_size
        if not self.costs.worth_loading(num_bytes, tier.reading_bytes, tokens):
            self._counts["recomputes"] += 1
            return 0, "slower"
        return count, None

    def _name(self, seq: Sequence, number: int) -> BlockName:
        index, size = self._tier.index, self._block_size
        assert index is not None
        parent = seq.block_hashes[number - 1] if number else root_of(seq.params.cache_salt)
        tokens = tuple(seq.tokens[number * size : (number + 1) * size])
        return BlockName(index.fingerprint, seq.block_hashes[number], parent, tokens)

    def _keep(self, seq: Sequence, numbers: list[int]) -> None:
        """Wants these blocks of a running sequence written, unless they are."""
        if not numbers or self._tier.index is None:
            return
        known = self._tier.has_or_will
        numbers = [i for i in numbers if seq.block_hashes[i] not in self._leaving and not known(seq.block_hashes[i])]
        room = max(0, self._tier.write_room - len(self._leaving))
        if len(numbers) > room:
            self._unwritten["busy"] += len(numbers) - room
            numbers = numbers[:room]
        if not numbers:
            return
        names, blocks = [self._name(seq, i) for i in numbers], [seq.block_table[i] for i in numbers]
        self._pool.share(blocks)
        self._leaving.update(name.chain_hash for name in names)
        self._wanted.append(_Outward(seq.block_hashes[: numbers[-1] + 1], names, blocks))

    def _place(self, load: _Load) -> None:
        """Gives what was read blocks of the pool, and begins to copy it there."""
        reading = load.reading
        del self._loads[load.seq.seq_id]
        if not reading.is_done:
            self._misses["deadline"] += 1
            self._tier.give_up(reading)
            # That it is slow is to be learnt, too.
            size = max(1, len(reading.good)) * self._tier.record_bytes
            self.costs.observe_read(size, time.monotonic() - load.began)
        elif reading.reason is None:
            self.costs.observe_read(len(reading.names) * self._tier.record_bytes, reading.seconds)
        else:
            self._misses[reading.reason] += 1
        # What the sequence has in the pool is not given up for what comes after it.
        heads = self._heads(load)
        self._pool.share(heads)
        good = reading.good[: self._pool.num_free]
        blocks = self._pool.allocate(len(good))
        self._pool.release(reversed(heads))
        if blocks:
            self._inward.append(_Inward(load, self._copies.to_device(blocks, good)))
        else:
            self._end_load(load)

    def _heads(self, load: _Load) -> list[int]:
        parent = load.reading.names[0].chain_hash
        hashes = load.seq.block_hashes[: load.seq.block_hashes.index(parent)]
        found = (self._pool.lookup(block_hash) for block_hash in hashes)
        return [block for block in found if block is not None]

    def _take_copies(self) -> None:
        """Books the copies that are done, and lets go of their blocks."""
        if self._inward:
            done = [inward for inward in self._inward if inward.copy.is_done]
            self._inward = [inward for inward in self._inward if inward not in done]
            for inward in done:
                self._arrived(inward)
        if self._outward:
            left: list[_Outward] = []
            for outward in self._outward:
                if outward.copy is None or not outward.copy.is_done:
                    left.append(outward)
                else:
                    self._tier.write(Writing(outward.chain, outward.names, outward.copy.host))
                    self._let_go(outward)
            self._outward = left

    def _arrived(self, inward: _Inward) -> None:
        load, blocks = inward.load, inward.copy.blocks
        inward.copy.let_steps_see()
        hashes = [name.chain_hash for name in load.reading.names[: len(blocks)]]
        for block, block_hash in zip(blocks, hashes, strict=True):
            self._pool.register(block, block_hash)
        self._pool.release(reversed(blocks))
        if load.seq.seq_id in self._held_back:
            self._read_for.setdefault(load.seq.seq_id, set()).update(hashes)
        self._end_load(load)

    def _end_load(self, load: _Load) -> None:
        self._held_back.discard(load.seq.seq_id)
        self._loading.difference_update(name.chain_hash for name in load.reading.names)

    def _let_go(self, outward: _Outward) -> None:
        self._pool.release(reversed(outward.blocks))
        self._leaving.difference_update(name.chain_hash for name in outward.names)
