"""What a block holds, as a name: the chain hash of its tokens and everything before them."""

from __future__ import annotations

import hashlib
from array import array

from .sequence import Sequence

#: Root of every chain. SHA-256 with a fixed seed: the same tokens have the same name in every process.
ROOT = hashlib.sha256(b"millrace block chain 1").digest()


def block_hash(parent: bytes, tokens: list[int]) -> bytes:
    """The name of a full block whose predecessor is `parent` (ROOT for the first)."""
    return hashlib.sha256(parent + array("I", tokens).tobytes()).digest()


def extend_hashes(seq: Sequence, count: int, block_size: int) -> None:
    """Brings `seq.block_hashes` up to its first `count` blocks, which must be full."""
    hashes = seq.block_hashes
    parent = hashes[-1] if hashes else ROOT
    for index in range(len(hashes), count):
        parent = block_hash(parent, seq.tokens[index * block_size : (index + 1) * block_size])
        hashes.append(parent)
