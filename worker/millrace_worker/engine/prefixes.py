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
        #: Sequences that wait for one of these, by its hash, and since the list was last taken those that need not.
        self._parked: dict[bytes, list[Sequence]] = {}
        self._woken: list[Sequence] = []
        #: What was found for waiting sequences, by seq_id, and how many blocks the pool had forgotten by then.
        self._found: dict[int, tuple[int, list[int]]] = {}

    def hits(self, seq: Sequence) -> list[int]:
        """Cached blocks at the head of the sequence. The last token is always computed: its logits are needed.

        What was found before is there still, unless the pool has forgotten anything since.
        """
        if not self._enabled:
            return []
        full = self._name(seq)
        forgotten, hits = self._found.get(seq.seq_id, (-1, []))
        if forgotten != self._pool.num_forgotten:
            hits = []
        for block_hash in seq.block_hashes[len(hits) : full]:
            block = self._pool.lookup(block_hash)
            if block is None:
                break
            hits.append(block)
        self._found[seq.seq_id] = self._pool.num_forgotten, hits
        return hits

    def names(self, seq: Sequence, least: int) -> tuple[bytes, ...]:
        """The names of its prefixes of `least` blocks, twice, four times as many, and so on."""
        full = self._name(seq)
        lengths = (least << doublings for doublings in range(full.bit_length()))
        return tuple(seq.block_hashes[length - 1] for length in lengths if length <= full)

    def is_there(self, name: bytes) -> bool:
        """Whether the block is cached, or being computed."""
        return self._pool.lookup(name) is not None or name in self._in_flight

    def awaited(self, seq: Sequence, num_hits: int) -> bytes | None:
        """The block that `seq` waits for: the last that it has in common with whoever computes the first it misses.

        None: nobody does right now who does so no later than it would.
        """
        hashes = seq.block_hashes
        if num_hits == len(hashes):
            return None
        owner = self._in_flight.get(hashes[num_hits])
        if owner is None or owner.rank > seq.rank:
            return None
        # Names are of everything up to a block: from the first that differs on, all do.
        first, theirs = num_hits, owner.block_hashes
        end = min(len(hashes), len(theirs))
        while end - first > 1:
            middle = (first + end) // 2
            first, end = (middle, end) if hashes[middle] == theirs[middle] else (first, middle)
        return hashes[first] if self._in_flight.get(hashes[first]) is owner else hashes[num_hits]

    def park(self, seq: Sequence, block_hash: bytes) -> None:
        """`seq` waits until nobody computes this block any more."""
        seq.awaits = block_hash
        self._parked.setdefault(block_hash, []).append(seq)

    def unpark(self, seq: Sequence) -> None:
        """`seq` waits for no block, if it did."""
        if seq.awaits is not None:
            parked = self._parked[seq.awaits]
            parked.remove(seq)
            if not parked:
                del self._parked[seq.awaits]
            seq.awaits = None
        elif seq in self._woken:
            self._woken.remove(seq)

    def take_woken(self) -> list[Sequence]:
        """Those whose block is there, or will not be."""
        if not self._woken:
            return []
        woken, self._woken = self._woken, []
        return woken

    def claim(self, seq: Sequence, num_hits: int) -> dict[Sequence, int]:
        """The sequence, which starts, computes its blocks from now on, but for those that somebody computes no later.

        Returns those who were computing some of them, and up to which block.
        """
        self._found.pop(seq.seq_id, None)
        displaced: dict[Sequence, int] = {}
        for number, block_hash in enumerate(seq.block_hashes[num_hits:], start=num_hits + 1):
            owner = self._in_flight.get(block_hash)
            if owner is None or owner.rank > seq.rank:
                self._in_flight[block_hash] = seq
                if owner is not None:
                    displaced[owner] = number
        return displaced

    def register(self, seq: Sequence, start: int, end: int) -> None:
        """Makes the blocks findable that the tokens from `start` to `end` have filled."""
        first, full = start // self._block_size, end // self._block_size
        if first >= full or not self._enabled:
            return
        self._hasher.extend(seq, full)
        in_flight, parked = self._in_flight, self._parked
        for block_hash, block in zip(seq.block_hashes[first:full], seq.block_table[first:full], strict=True):
            self._pool.register(block, block_hash)
            if in_flight.get(block_hash) is seq:
                del in_flight[block_hash]
            if parked and block_hash in parked:
                self._wake(block_hash)
        self._tier.computed(seq, first, full)

    def disclaim(self, seq: Sequence) -> None:
        """The sequence does not run any more: others compute what it has not."""
        for block_hash in seq.block_hashes if self._in_flight else ():
            if self._in_flight.get(block_hash) is seq:
                del self._in_flight[block_hash]
                if block_hash in self._parked:
                    self._wake(block_hash)

    def forget(self, seq: Sequence) -> None:
        """`seq`, which waited, ended."""
        self._found.pop(seq.seq_id, None)
        self.unpark(seq)

    def check_integrity(self, running: list[Sequence]) -> None:
        """Asserts that whatever is waited for is being computed."""
        assert set(self._in_flight.values()) <= set(running), "blocks in flight without an owner"
        assert self._parked.keys() <= self._in_flight.keys(), "blocks are waited for that nobody computes"
        for block_hash, parked in self._parked.items():
            assert parked, "nobody waits"
            assert all(seq.awaits == block_hash for seq in parked), "sequences wait for two blocks"

    def _name(self, seq: Sequence) -> int:
        """Names the full blocks of a waiting sequence before its last token; how many there are."""
        full = (seq.num_tokens - 1) // self._block_size
        self._hasher.extend(seq, full)
        return full

    def _wake(self, block_hash: bytes) -> None:
        for seq in self._parked.pop(block_hash):
            seq.awaits = None
            self._woken.append(seq)
