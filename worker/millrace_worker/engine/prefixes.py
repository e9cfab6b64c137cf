"""What sequences find of their prefixes: which blocks are cached, being computed by another, or kept elsewhere."""

from __future__ import annotations

from .block_pool import BlockPool
from .lower_tier import LowerTier
from .prefix_cache import ChainHasher
from .sequence import Sequence


class Prefixes:
    """The names of sequences' blocks, for one scheduler; `enabled` False: nothing is named, and nothing is found."""

    def __init__(self, pool: BlockPool, tier: LowerTier, block_size: int, *, enabled: bool) -> None:
        self._pool, self._tier, self._block_size, self._enabled = pool, tier, block_size, enabled
        self._hasher = ChainHasher(block_size)
        #: Blocks that a running sequence is computing, by hash. Whoever needs the same block waits for it.
        self._in_flight: dict[bytes, Sequence] = {}

    @property
    def owners(self) -> set[Sequence]:
        """Of blocks that are being computed."""
        return set(self._in_flight.values())

    def hits(self, seq: Sequence) -> list[int]:
        """Cached blocks at the head of the sequence. The last token is always computed: its logits are needed."""
        if not self._enabled:
            return []
        full = (seq.num_tokens - 1) // self._block_size
        self._hasher.extend(seq, full)
        hits: list[int] = []
        for block_hash in seq.block_hashes[:full]:
            block = self._pool.lookup(block_hash)
            if block is None:
                break
            hits.append(block)
        return hits

    def is_in_flight(self, seq: Sequence, num_hits: int) -> bool:
        """Whether the first block that is missing is being computed right now, by somebody who does so no later."""
        if num_hits == len(seq.block_hashes):
            return False
        owner = self._in_flight.get(seq.block_hashes[num_hits])
        return owner is not None and owner.rank <= seq.rank

    def claim(self, seq: Sequence, num_hits: int) -> None:
        """The sequence computes its blocks from now on, but for those that somebody computes no later."""
        for block_hash in seq.block_hashes[num_hits:]:
            owner = self._in_flight.get(block_hash)
            if owner is None or owner.rank > seq.rank:
                self._in_flight[block_hash] = seq

    def register(self, seq: Sequence, start: int, end: int) -> None:
        """Makes the blocks findable that the tokens from `start` to `end` have filled."""
        first, full = start // self._block_size, end // self._block_size
        if first >= full or not self._enabled:
            return
        self._hasher.extend(seq, full)
        for block_hash, block in zip(seq.block_hashes[first:full], seq.block_table[first:full], strict=True):
            self._pool.register(block, block_hash)
            if self._in_flight.get(block_hash) is seq:
                del self._in_flight[block_hash]
        self._tier.computed(seq, first, full)

    def disclaim(self, seq: Sequence) -> None:
        """The sequence does not run any more: others compute what it has not."""
        for block_hash in seq.block_hashes if self._in_flight else ():
            if self._in_flight.get(block_hash) is seq:
                del self._in_flight[block_hash]
