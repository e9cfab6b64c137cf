"""The blocks of KV memory as ids and counts: which are free, who shares them, what they hold."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class BlockPool:
    """Reference-counted blocks with an index from content hash to block.

    A block whose count falls to zero keeps its content and its hash until it is allocated again, so freeing is also
    caching. `_free` is in order of reuse: blocks without content worth keeping at the front, then the least recently
    used. An OrderedDict, because a prefix hit takes a block out of the middle in O(1).
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._references = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        #: How often something that could be found was forgotten.
        self.num_forgotten = 0

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now, cached content included."""
        return len(self._free)

    @property
    def num_named(self) -> int:
        """Blocks whose content can be found."""
        return len(self._block_of)

    def grow(self, count: int) -> None:
        """Adds free blocks, numbered on from those there are."""
        for block in range(self.num_blocks, self.num_blocks + count):
            self._free[block] = None
            self._free.move_to_end(block, last=False)
        self._references += [0] * count
        self._hash_of += [None] * count
        self.num_blocks += count

    def is_free(self, block: int) -> bool:
        return self._references[block] == 0

    def references(self, block: int) -> int:
        return self._references[block]

    def lookup(self, block_hash: bytes) -> int | None:
        """The block that holds this content, if any does."""
        return self._block_of.get(block_hash)

    def allocate(self, count: int) -> list[int]:
        """`count` blocks of one reference each, their old content forgotten.

        The caller has checked num_free.
        """
        assert count <= len(self._free)
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            old = self._hash_of[block]
            if old is not None:
                del self._block_of[old]
                self._hash_of[block] = None
                self.num_forgotten += 1
            self._references[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Adds a reference to each block."""
        for block in blocks:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drops a reference to each block.

        Give a table in reverse: tails are then reused before the heads that more sequences may share.
        """
        for block in blocks:
            assert self._references[block] > 0
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if self._hash_of[block] is None:
                    self._free.move_to_end(block, last=False)

    def age(self, table: Iterable[int]) -> None:
        """Of these blocks those without a reference are allocated before all others, tails first."""
        for block in table:
            if self._references[block] == 0:
                self._free.move_to_end(block, last=False)

    def register(self, block: int, block_hash: bytes) -> None:
        """Makes the content of a full, computed block findable.

        Of two blocks with the same content the first stays the findable one: tables are append-only, so the second
        cannot be swapped for it.
        """
        assert self._references[block] > 0
        if block_hash not in self._block_of and self._hash_of[block] is None:
            self._block_of[block_hash] = block
            self._hash_of[block] = block_hash

    def forget_all(self) -> None:
        """Empties the index; blocks in use stay with their owners."""
        self.num_forgotten += 1
        self._block_of.clear()
        self._hash_of = [None] * self.num_blocks

    def check_integrity(self, tables: Iterable[Iterable[int]]) -> None:
        """Asserts that counts, free list and index agree with the block tables in use. For tests and idle moments."""
        counts = [0] * self.num_blocks
        for table in tables:
            for block in table:
                counts[block] += 1
        assert counts == self._references, "reference counts differ from the tables"
        assert {b for b, n in enumerate(counts) if n == 0} == set(self._free), "free list differs from the counts"
        assert {h: b for b, h in enumerate(self._hash_of) if h is not None} == self._block_of, "index is out of date"
