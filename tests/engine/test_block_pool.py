"""Exact block ids and order: which block is handed out, shared, evicted next."""

from __future__ import annotations

import pytest

from millrace_worker.engine.block_pool import BlockPool


def hashes(n: int) -> list[bytes]:
    return [bytes([i]) * 32 for i in range(n)]


def test_allocates_in_order_and_counts() -> None:
    pool = BlockPool(4)
    assert pool.allocate(3) == [0, 1, 2]
    assert pool.num_free == 1
    pool.check_integrity([[0, 1, 2]])


def test_freed_blocks_without_content_are_used_first() -> None:
    pool = BlockPool(5)
    table = pool.allocate(3)
    pool.register(table[0], hashes(3)[0])
    pool.release(reversed(table))
    assert pool.allocate(5) == [1, 2, 3, 4, 0]


def test_tails_are_evicted_before_heads() -> None:
    pool = BlockPool(3)
    table = pool.allocate(3)
    for block, name in zip(table, hashes(3), strict=True):
        pool.register(block, name)
    pool.release(reversed(table))
    assert pool.allocate(2) == [2, 1]
    assert pool.lookup(hashes(3)[0]) == 0
    assert pool.lookup(hashes(3)[1]) is None


def test_a_hit_takes_a_block_out_of_the_free_list_and_makes_it_most_recent() -> None:
    pool = BlockPool(3)
    table = pool.allocate(3)
    for block, name in zip(table, hashes(3), strict=True):
        pool.register(block, name)
    pool.release(table)
    pool.share([0])
    assert pool.num_free == 2
    pool.release([0])
    assert pool.allocate(3) == [1, 2, 0]


def test_shared_blocks_are_free_only_after_the_last_holder() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    pool.share([block])
    pool.release([block])
    assert not pool.is_free(block)
    pool.release([block])
    assert pool.is_free(block)
    pool.check_integrity([])


def test_the_first_of_two_equal_blocks_stays_findable() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.register(first, hashes(1)[0])
    pool.register(second, hashes(1)[0])
    assert pool.lookup(hashes(1)[0]) == first
    pool.check_integrity([[first, second]])


def test_forget_all_leaves_blocks_with_their_owners() -> None:
    pool = BlockPool(2)
    table = pool.allocate(1)
    pool.register(table[0], hashes(1)[0])
    pool.forget_all()
    assert pool.lookup(hashes(1)[0]) is None
    pool.check_integrity([table])


def test_integrity_check_sees_a_lost_reference() -> None:
    pool = BlockPool(2)
    pool.allocate(1)
    with pytest.raises(AssertionError, match="reference counts"):
        pool.check_integrity([])
