"""What a block holds, as a name: the chain hash of its tokens and everything before them."""

from __future__ import annotations

import hashlib
from array import array

from .sequence import Sequence

#: Root of every chain. SHA-256 with a fixed seed: the same tokens have the same name in every process.
ROOT = hashlib.sha256(b"millrace block chain 1").digest()


def block_hash(parent: bytes, tokens: list[int]) -> bytes:
    """The name of a full block whose predecessor is `parent` (ROOT for the first)."""
    return _hash(parent, _content(tokens))


def extend_hashes(seq: Sequence, count: int, block_size: int) -> None:
    """Brings `seq.block_hashes` up to its first `count` blocks, which must be full."""
    hashes = seq.block_hashes
    first = len(hashes)
    if first >= count:
        return
    content = _content(seq.tokens[first * block_size : count * block_size])
    block_bytes = len(content) // (count - first)
    parent = hashes[-1] if hashes else ROOT
    for offset in range(0, len(content), block_bytes):
        parent = _hash(parent, content[offset : offset + block_bytes])
        hashes.append(parent)


def _content(tokens: list[int]) -> bytes:
    return array("I", tokens).tobytes()


def _hash(parent: bytes, content: bytes) -> bytes:
    return hashlib.sha256(parent + content).digest()
