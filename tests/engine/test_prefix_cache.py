"""Names of blocks: fixed over processes, different for any difference in what came before."""

from __future__ import annotations

from fake_model import sequence
from millrace_worker.engine.prefix_cache import ROOT, block_hash, extend_hashes


def test_the_name_of_a_block_is_fixed() -> None:
    """A changed hash silently empties every cache that outlives the process."""
    assert block_hash(ROOT, [1, 2, 3, 4]).hex() == "5952725f92dfeeb16a77f6a9a8c6f90eb3ba1d5332df8b5f960a5114525c8e7c"


def test_the_chain_depends_on_everything_before() -> None:
    one, two = sequence(1, [1, 2, 3, 4, 5, 6]), sequence(2, [9, 2, 3, 4, 5, 6])
    for seq in (one, two):
        extend_hashes(seq, 3, 2)
    assert not set(one.block_hashes) & set(two.block_hashes)


def test_hashes_are_extended_not_recomputed() -> None:
    seq = sequence(1, [1, 2, 3, 4, 5, 6])
    extend_hashes(seq, 2, 2)
    first = list(seq.block_hashes)
    extend_hashes(seq, 3, 2)
    assert seq.block_hashes[:2] == first
    assert len(seq.block_hashes) == 3
