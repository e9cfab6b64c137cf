"""What a block holds, as a name: the chain hash of its tokens and everything before them."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict

import numpy as np

from .sequence import Sequence

#: Root of every chain without a salt. SHA-256 with a fixed seed: the same tokens have the same name in every process.
ROOT = hashlib.sha256(b"millrace block chain 1").digest()

#: Beginnings that are kept: of more system prompts than these, those that were not asked for lately are hashed again.
_REMEMBERED = 64


def root_of(salt: str) -> bytes:
    """Root of the chains of this salt: ROOT for "", and one that no chain of another salt leads to."""
    # No block's name is made of these bytes: theirs begin with a digest. So no salt can be taken for tokens.
    return hashlib.sha256(b"millrace block chain 1 salt " + salt.encode()).digest() if salt else ROOT


def block_hash(parent: bytes, tokens: list[int]) -> bytes:
    """The name of a full block whose predecessor is `parent` (that of `root_of` for the first)."""
    return _hash(parent, _content(tokens))


class ChainHasher:
    """Names the blocks of sequences; one that begins as another did lately takes over the names they share."""

    def __init__(self, block_size: int, *, remembered: int = _REMEMBERED) -> None:
        self._block_size = block_size
        self._remembered = remembered
        #: By salt and first block: content and names of the last sequence with these, the latest at the end.
        self._recent: OrderedDict[tuple[str, bytes], tuple[bytes, list[bytes]]] = OrderedDict()

    def extend(self, seq: Sequence, count: int) -> None:
        """Brings `seq.block_hashes` up to its first `count` blocks, which must be full."""
        hashes, size, salt = seq.block_hashes, self._block_size, seq.params.cache_salt
        first = len(hashes)
        if first >= count:
            return
        content = _content(seq.tokens[first * size : count * size])
        block_bytes = len(content) // (count - first)
        if first == 0:
            hashes += self._known(salt, content, block_bytes)
        parent = hashes[-1] if hashes else root_of(salt)
        for offset in range((len(hashes) - first) * block_bytes, len(content), block_bytes):
            parent = _hash(parent, content[offset : offset + block_bytes])
            hashes.append(parent)
        if first == 0:
            self._remember(salt, content, hashes[:count], block_bytes)

    def _known(self, salt: str, content: bytes, block_bytes: int) -> list[bytes]:
        before = self._recent.get((salt, content[:block_bytes]))
        if before is None:
            return []
        length = min(len(content), len(before[0]))
        differs = np.frombuffer(content, np.uint8, length) != np.frombuffer(before[0], np.uint8, length)
        same = int(differs.argmax()) if differs.any() else length
        return before[1][: same // block_bytes]

    def _remember(self, salt: str, content: bytes, hashes: list[bytes], block_bytes: int) -> None:
        head = salt, content[:block_bytes]
        self._recent[head] = content, hashes
        self._recent.move_to_end(head)
        if len(self._recent) > self._remembered:
            self._recent.popitem(last=False)


def _content(tokens: list[int]) -> bytes:
    return array("I", tokens).tobytes()


def _hash(parent: bytes, content: bytes) -> bytes:
    return hashlib.sha256(parent + content).digest()
