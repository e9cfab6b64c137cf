"""Blocks that a lower tier holds for a copy are never what a sequence is preempted for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fake_model import FakeModel, Pipeline, answer, run_step, sequence
from millrace_worker.engine.block_pool import BlockPool
from millrace_worker.engine.lower_tier import NoLowerTier, Wait
from millrace_worker.engine.scheduler import Scheduler
from millrace_worker.engine.sequence import Sequence


class Holder(NoLowerTier):
    """Holds blocks until it is asked to give them back."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self.blocks: list[int] = []

    @property
    def held(self) -> Iterator[list[int]]:  # type: ignore[override]
        yield self.blocks

    def take(self, count: int) -> None:
        self.blocks += self._pool.allocate(count)

    def give_back(self) -> None:
        self._pool.release(self.blocks)
        self.blocks = []


def test_a_sequence_that_needs_them_gets_them() -> None:
    pool, model = BlockPool(4), FakeModel(4)
    tier = Holder(pool)
    scheduler = Scheduler(pool, block_size=4, max_num_seqs=2, max_num_batched_tokens=64, tier=tier)
    seq = sequence(1, list(range(8)), max_tokens=8)
    scheduler.add(seq)
    run_step(scheduler, model)
    tier.take(2)
    while scheduler.has_work:
        run_step(scheduler, model)
    assert seq.tokens[8:] == answer(list(range(8)), 8)
    assert scheduler.num_preemptions == 0
    assert tier.blocks == []


def test_hits_that_it_gives_back_are_not_room_for_anything_else() -> None:
    pool, model = BlockPool(10), FakeModel(4)
    tier = Holder(pool)
    scheduler = Scheduler(pool, block_size=4, max_num_seqs=4, max_num_batched_tokens=64, tier=tier)
    scheduler.add(sequence(1, list(range(17)), max_tokens=1))
    run_step(scheduler, model)
    batch = sequence(2, list(range(50, 58)), max_tokens=6, priority=1)
    scheduler.add(batch)
    for _ in range(2):  # and a third block
        run_step(scheduler, model)
    # Of the first prompt, as for a copy.
    cached = [block for block in range(10) if pool._hash_of[block] and pool.is_free(block)]
    assert len(cached) == 4
    pool.share(cached)
    tier.blocks = cached
    urgent = sequence(3, [*range(16), *range(80, 94)], max_tokens=2)
    scheduler.add(urgent)
    while scheduler.has_work:
        run_step(scheduler, model)
    assert urgent.num_cached == 16
    assert urgent.tokens[30:] == answer([*range(16), *range(80, 94)], 2)
    assert (batch.num_preempted, batch.tokens[8:]) == (1, answer(list(range(50, 58)), 6))


class Watcher(NoLowerTier):
    """Notes what a preempted sequence still has."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []

    def preempted(self, seq: Sequence, num_computed: int) -> None:
        self.seen.append((seq.seq_id, num_computed, len(seq.block_table)))


@pytest.mark.parametrize("overlap", [False, True])
def test_it_hears_of_a_preempted_sequence_before_the_blocks_are_gone(overlap: bool) -> None:
    tier, model = Watcher(), FakeModel(4)
    scheduler = Scheduler(BlockPool(16), block_size=4, max_num_seqs=1, max_num_batched_tokens=64, tier=tier)
    batch = sequence(1, list(range(10)), max_tokens=9, priority=1)
    scheduler.add(batch)
    pipeline = Pipeline(scheduler, model, overlap=overlap)
    for _ in range(4):
        pipeline.step()
    scheduler.add(sequence(2, [1, 2], max_tokens=2))
    pipeline.step()
    # The prompt, and what the three steps after its own computed; that of a step in flight is on its way.
    assert tier.seen == [(1, 13, 4)]
    while pipeline.has_work:
        pipeline.step()
    assert batch.tokens[10:] == answer(list(range(10)), 9)


def test_nobody_is_preempted_for_blocks_that_it_gives_back() -> None:
    pool, model = BlockPool(10), FakeModel(4)
    tier = Holder(pool)
    scheduler = Scheduler(pool, block_size=4, max_num_seqs=4, max_num_batched_tokens=64, tier=tier)
    batch = sequence(1, list(range(8)), max_tokens=6, priority=1)
    scheduler.add(batch)
    run_step(scheduler, model)
    tier.take(6)
    scheduler.add(sequence(2, list(range(50, 62)), max_tokens=3))
    run_step(scheduler, model)
    assert [seq.seq_id for seq in scheduler.running] == [2, 1]
    assert scheduler.num_preemptions == 0
    # Without anybody to preempt, one waits: the copies take milliseconds.
    tier.take(pool.num_free - 2)
    scheduler.add(sequence(3, list(range(70, 82)), max_tokens=2, priority=1))
    run_step(scheduler, model)
    assert tier.blocks
    assert scheduler.num_waiting == 1


class Reader(NoLowerTier):
    """Holds everybody back until it has read what they wait for."""

    def __init__(self) -> None:
        self.news = 0
        self.asked: list[int] = []

    def hold_back(self, seq: Sequence, num_hits: int, *, may_load: bool) -> Wait:
        self.asked.append(seq.seq_id)
        return Wait.NEWS if self.news == 0 and seq.seq_id >= 10 else Wait.NONE


@pytest.mark.parametrize("prefix_wait", [0.0, 2.0])
def test_who_waits_for_it_is_asked_about_again_only_when_there_is_news(prefix_wait: float) -> None:
    tier, model = Reader(), FakeModel(4)
    settings = {"block_size": 4, "max_num_seqs": 8, "max_num_batched_tokens": 64, "prefix_wait": prefix_wait}
    scheduler = Scheduler(BlockPool(64), **settings, tier=tier)  # type: ignore[arg-type]
    scheduler.add(sequence(1, [1, 2, 3], max_tokens=9, priority=1))
    waiting = [sequence(10 + n, [5 + n, 6, 7], max_tokens=2, priority=1) for n in range(4)]
    for seq in waiting:
        scheduler.add(seq)
    for _ in range(3):
        run_step(scheduler, model)
    assert sorted(tier.asked) == [1, 10, 11, 12, 13]
    assert [seq.seq_id for seq in scheduler.running] == [1]
    scheduler.abort(11)
    # Others that come meanwhile are not kept waiting.
    scheduler.add(sequence(2, [9, 8, 7], max_tokens=9, priority=1))
    run_step(scheduler, model)
    assert {seq.seq_id for seq in scheduler.running} == {1, 2}
    tier.news += 1
    run_step(scheduler, model)
    assert {seq.seq_id for seq in scheduler.running} == {1, 2, 10, 12, 13}
    while scheduler.has_work:
        run_step(scheduler, model)
    assert waiting[0].tokens[3:] == answer([5, 6, 7], 2)
