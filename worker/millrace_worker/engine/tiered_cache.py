"""What the prefix cache has below the pool, as one: the engine's half, which never waits for a disk."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from itertools import chain

import numpy as np

from millrace_worker.cache_stats import CacheStats

from .block_copies import BlockCopies
from .block_pool import BlockPool
from .disk_tier import DiskTier
from .frequency_sketch import FrequencySketch
from .host_tier import HostTier
from .keeping import Keeping
from .kv_record import BlockName
from .load_costs import LoadCosts
from .load_plan import Store, plan_load
from .loads import Loads
from .lower_tier import Wait
from .prefix_cache import root_of
from .s3_cache import NoS3, S3Cache
from .sequence import Sequence
from .swaps import Swaps
from .tier_counts import TierCounts
from .tier_switches import TierSwitches

#: Blocks are kept once they were seen so often: a prompt that comes once is not.
_SIGHTINGS = 2
#: A beginning of prompts that is in all tiers is looked at no more often than this, in seconds; so many are remembered.
_LATELY, _MOST_USED = 0.5, 1024
#: Seconds after which a copy is looked at again while there is nothing else to do.
_GLANCE = 0.0002


class TieredCache:
    """A LowerTier of the CPU tier, the disk, or both. What is fetched becomes a cached block of the pool, and so a
    prefix hit like any other.
    """

    def __init__(
        self,
        pool: BlockPool,
        copies: BlockCopies,
        costs: LoadCosts,
        *,
        block_size: int,
        host: HostTier | None = None,
        disk: DiskTier | None = None,
        s3: S3Cache | None = None,
    ) -> None:
        """`s3`: where blocks that are not on the disk may be fetched from."""
        self.costs = costs
        self.s3: S3Cache | NoS3 = NoS3() if s3 is None else s3
        self._pool, self._block_size = pool, block_size
        self._host, self._disk = host, disk
        #: From the fastest to the slowest.
        self._stores: list[Store] = [store for store in (host, disk) if store is not None]
        self._sketch = FrequencySketch()
        #: Hashes of blocks that are kept at the first sighting.
        self._protected: set[bytes] = set()
        self._counts = counts = TierCounts()
        self._loads = Loads(pool, copies, self.costs, block_size=block_size, host=host, disk=disk, misses=counts.misses)
        self._keeping = Keeping(pool, copies, host=host, disk=disk, name=self._name, unwritten=counts.unwritten)
        self._swaps = None if host is None else Swaps(copies, host, self.costs, block_size)
        #: How many blocks a waiting sequence had when it was last looked up, by seq_id: not twice for the same.
        self._looked_up: dict[int, int] = {}
        #: Those that had more of them then, and were looked up once more.
        self._lost: set[int] = set()
        #: When beginnings of prompts, by the last block's hash, were found in all tiers.
        self._used: dict[bytes, float] = {}
        self.switches = TierSwitches(host, disk, self.s3, costs, self._used.clear)

    @property
    def held(self) -> Iterable[list[int]]:
        return chain(self._loads.held, self._keeping.held)

    @property
    def stats(self) -> CacheStats:
        swapped = 0 if self._swaps is None else self._swaps.num_blocks
        return self._counts.stats(self._host, self._disk, self.s3, swapped_blocks=swapped)

    @property
    def news(self) -> int:
        return self._loads.num_ended + self.s3.num_ended + (0 if self._swaps is None else self._swaps.num_ended)

    def ahead(self, rank: int) -> tuple[int, int]:
        sequences, blocks = self._loads.ahead.up_to(rank)
        return sequences, max(0, blocks - self._loads.num_copying)

    def hold_back(self, seq: Sequence, num_hits: int, *, may_load: bool) -> Wait:
        if self._loads.is_held_back(seq):
            return Wait.NEWS
        if self._loads.lacks_room(seq):
            return Wait.ROOM
        full = (seq.num_tokens - 1) // self._block_size
        looked_up = self._looked_up.get(seq.seq_id, -1)
        if num_hits >= full or looked_up == num_hits or (looked_up > num_hits and seq.seq_id in self._lost):
            return Wait.NONE
        first = seq.block_hashes[num_hits]
        if self._loads.is_loading(first) or (self._swaps is not None and self._swaps.is_leaving(first)):
            return Wait.NEWS
        if self.s3.hold_back(seq, seq.block_hashes[num_hits:full]):
            return Wait.NEWS
        # Where nothing is on its way, those that it came for are passed over by others, whom it would keep waiting.
        if not may_load and self._loads.is_busy and any(store.has(first) for store in self._stores):
            return Wait.TURN
        again = looked_up >= 0
        if looked_up > num_hits:
            self._lost.add(seq.seq_id)
        self._looked_up[seq.seq_id] = num_hits
        plan = plan_load(
            seq.block_hashes[num_hits:full],
            self._stores,
            self.costs,
            block_size=self._block_size,
            copying_bytes=self._loads.copying_bytes,
        )
        if not again:
            if plan.reason is not None and not seq.is_own:
                self._counts.misses[plan.reason] += 1
            if plan.slow is not None:
                self._counts.recomputes[plan.slow.name] += 1
            self._counts.loads.update({segment.store.name for segment in plan.segments})
        if not plan.segments:
            return Wait.NONE
        self._loads.begin(seq, num_hits, plan, self._name)
        return Wait.ROOM if self._loads.lacks_room(seq) else Wait.NEWS

    def place(self, seq: Sequence) -> None:
        self._loads.place(seq)

    def started(self, seq: Sequence, num_hits: int, *, first: bool) -> dict[str, int]:
        self._looked_up.pop(seq.seq_id, None)
        self._lost.discard(seq.seq_id)
        tiers = self._loads.take_tiers(seq)
        hashes = seq.block_hashes[: seq.num_prompt // self._block_size]
        on_disk = self._disk is not None and bool(hashes) and self._disk.has(hashes[0])
        lately = first and self._was_used_lately(hashes[:num_hits])
        fetched = self.s3.started(seq, hashes if first and on_disk and not lately else [])
        if self._swaps is not None and seq.num_preempted:
            self._swaps.ended(seq)
        if not first:
            return {}
        size = self._block_size
        cached = min(num_hits * size, seq.num_prompt)
        found: dict[str, int] = {}
        for number, block_hash in enumerate(seq.block_hashes[:num_hits] if tiers else ()):
            tier = tiers.get(block_hash)
            if tier == "disk" and block_hash in fetched:
                tier = "s3"
            if tier is not None:
                found[tier] = found.get(tier, 0) + max(0, min(size, cached - number * size))
        if not seq.is_own:
            self._counts.prompt_tokens += seq.num_prompt
            self._counts.hit_tokens.update(found)
            self._counts.hit_tokens["gpu"] += cached - sum(found.values())
        counts = self._sketch.add(hashes)
        if not lately:
            worth = self._worth_keeping(seq, hashes[:num_hits], counts[:num_hits])
            if self._keeping.keep(seq, worth) and num_hits and len(worth) == num_hits:
                self._used[hashes[:num_hits][-1]] = time.monotonic()
            self._touch(hashes)
        return found

    def computed(self, seq: Sequence, first: int, end: int) -> None:
        hashes = seq.block_hashes[first : min(end, seq.num_prompt // self._block_size)]
        if hashes:
            worth = self._worth_keeping(seq, hashes, self._sketch.counts(hashes))
            self._keeping.keep(seq, [first + i for i in worth])

    def preempted(self, seq: Sequence, num_computed: int) -> None:
        if self._swaps is not None:
            self._swaps.preempted(seq, num_computed)

    def gone(self, seq: Sequence) -> None:
        self._looked_up.pop(seq.seq_id, None)
        self._lost.discard(seq.seq_id)
        self._loads.gone(seq)
        self.s3.gone(seq)
        if self._swaps is not None:
            self._swaps.ended(seq)

    def give_back(self) -> None:
        self._keeping.give_back()
        self._loads.finish_copies()

    @property
    def is_copying(self) -> bool:
        return self._keeping.is_busy

    def settle(self) -> None:
        self._keeping.flush(all_of_it=True)
        self._keeping.finish_copies()
        self._loads.finish_copies()
        self._poll_swaps()

    def poll(self) -> None:
        if self._host is not None:
            self._host.grow()
        self._poll_swaps()
        self.s3.poll()
        self._loads.poll()
        self._keeping.take_copies()

    def flush(self) -> None:
        self._keeping.flush()
        self._loads.take_copies()

    def wait(self, seconds: float) -> None:
        copying = self._keeping.is_busy and not self._loads.is_busy
        if copying or (self._swaps is not None and self._swaps.is_busy):
            time.sleep(min(seconds, _GLANCE))
        elif self.s3.is_busy and not self._loads.is_busy:
            self.s3.wait(seconds)
        else:
            self._loads.wait(seconds)

    def observe_step(self, prompt_tokens: int, other_tokens: int, seconds: float) -> None:
        self.costs.observe_step(prompt_tokens, other_tokens, seconds)

    def protect(self, chain: list[bytes]) -> None:
        self._protected.update(chain)
        for tier in (self._host, self._disk):
            if tier is not None:
                tier.protect(chain)

    def unprotect(self, chain: list[bytes]) -> None:
        self._protected.difference_update(chain)
        for tier in (self._host, self._disk):
            if tier is not None:
                tier.unprotect(chain)

    def tier_of(self, chain: list[bytes]) -> str:
        tiers = (*self._stores, self.s3)
        for end, slowest in enumerate(tiers, start=1):
            if all(any(tier.has(name) for tier in tiers[:end]) for name in chain):
                return slowest.name
        return ""

    def keeps(self, chain: list[bytes]) -> bool:
        return self._disk is None or all(map(self._disk.has, chain))

    def why_not(self, chain_hash: bytes) -> str:
        tiers = (*self._stores, self.s3)
        return "" if any(tier.has(chain_hash) for tier in tiers) else self._stores[-1].why_not(chain_hash)

    def close(self) -> None:
        self.settle()
        self.s3.end_fetches()
        if self._disk is not None:
            self._disk.close()
        if self._host is not None:
            self._host.close()
        self.s3.close()

    def check_integrity(self) -> None:
        """Asserts that the CPU tier's slots in use are those that somebody uses. For tests."""
        if self._host is not None and self._swaps is not None:
            held = chain(self._loads.held_slots, self._keeping.held_slots, self._swaps.held_slots)
            self._host.check_integrity(held)

    def _worth_keeping(self, seq: Sequence, hashes: list[bytes], counts: np.ndarray) -> list[int]:
        """Which of these blocks are, by how often each was seen; [N]."""
        if seq.params.marked:
            return list(range(len(hashes)))
        seen = counts >= _SIGHTINGS
        if self._protected:
            seen |= np.fromiter((name in self._protected for name in hashes), dtype=bool, count=len(hashes))
        return np.flatnonzero(seen).tolist()

    def _poll_swaps(self) -> None:
        if self._swaps is not None:
            self._swaps.poll()

    def _was_used_lately(self, found: list[bytes]) -> bool:
        """Whether these blocks were all kept and used a moment ago: of a busy prompt nothing is to be done then."""
        if not found:
            return False
        if len(self._used) > _MOST_USED:
            self._used.clear()
        return time.monotonic() - self._used.get(found[-1], -math.inf) < _LATELY

    def _touch(self, hashes: list[bytes]) -> None:
        if not hashes:
            return
        if self._host is not None and self._host.has(hashes[0]):
            self._host.touch(hashes)
        if self._disk is not None and self._disk.has(hashes[0]):
            self._disk.touch(hashes)

    def _name(self, seq: Sequence, number: int) -> BlockName:
        index, size = None if self._disk is None else self._disk.index, self._block_size
        parent = seq.block_hashes[number - 1] if number else root_of(seq.params.cache_salt)
        tokens = tuple(seq.tokens[number * size : (number + 1) * size])
        # Without a disk nobody asks whose they are: they do not outlive the process.
        return BlockName(b"" if index is None else index.fingerprint, seq.block_hashes[number], parent, tokens)
