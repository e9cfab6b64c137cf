"""Batch jobs are picked by shared prefixes, and none waits for it for longer than it may."""

from __future__ import annotations

import random

import pytest

from fake_model import FakeModel, answer, sequence
from millrace_worker.engine import scheduler as scheduler_module
from millrace_worker.engine.block_pool import BlockPool
from millrace_worker.engine.scheduler import Scheduler
from millrace_worker.engine.sequence import Sequence, SequenceState
from millrace_worker.engine.step import Step

WAIT = 2.0


@pytest.fixture(autouse=True)
def _short_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks of the tests' prompts are worth it."""
    monkeypatch.setattr(scheduler_module, "LEAST_TOKENS", 8)


def make(blocks: int = 256, *, seqs: int = 2, wait: float = WAIT, budget: int = 64) -> Scheduler:
    return Scheduler(
        BlockPool(blocks), block_size=4, max_num_seqs=seqs, max_num_batched_tokens=budget, prefix_wait=wait
    )


def head(letter: str, length: int = 12) -> list[int]:
    return [ord(letter) * 100 + i for i in range(length)]


def job(number: int, heads: str, tokens: int = 3, *, priority: int = 1) -> Sequence:
    """Behind the prefixes of these letters."""
    start = [token for letter in heads for token in head(letter)]
    return sequence(number, [*start, number, number], tokens, priority=priority)


def order_of_starts(scheduler: Scheduler, model: FakeModel | None = None) -> list[int]:
    """Runs all; who started, in order."""
    now, order = 0.0, []
    model = model or FakeModel(4)
    while scheduler.has_work:
        now += 0.01
        step = scheduler.schedule(now)
        order += [started.seq_id for started in scheduler.started]
        scheduler.started.clear()
        assert step is not None
        scheduler.complete(step, model.run(step))
        scheduler.check_integrity()
    return order


def test_jobs_of_one_prefix_run_together() -> None:
    scheduler = make()
    for number in range(12):
        scheduler.add(job(number, "ABC"[number % 3]))
    order = order_of_starts(scheduler)
    assert "".join("ABC"[number % 3] for number in order) == "AAAABBBBCCCC"
    for letter in range(3):
        assert [number for number in order if number % 3 == letter] == list(range(letter, 12, 3))


def test_without_a_wait_it_is_the_order_of_arrival() -> None:
    scheduler = make(wait=0.0)
    for number in range(12):
        scheduler.add(job(number, "ABC"[number % 3]))
    assert order_of_starts(scheduler) == list(range(12))


def test_interactive_jobs_start_in_the_order_of_arrival() -> None:
    scheduler = make()
    for number in range(12):
        scheduler.add(job(number, "ABC"[number % 3], priority=0))
    assert order_of_starts(scheduler) == list(range(12))


def test_the_longest_prefix_counts() -> None:
    """All share a template; of two system prompts behind it, each comes by itself."""
    scheduler = make(seqs=1)
    for number in range(12):
        scheduler.add(job(number, "T" + "ABC"[number % 3] * 2))
    assert "".join("ABC"[number % 3] for number in order_of_starts(scheduler)) == "AAAABBBBCCCC"


def test_a_prefix_that_is_there_comes_before_a_new_one() -> None:
    scheduler, model = make(seqs=1), FakeModel(4)
    scheduler.add(job(0, "B"))
    order_of_starts(scheduler, model)
    scheduler.add(sequence(1, [5] * 6, 1, priority=1))
    order_of_starts(scheduler, model)
    for number, letter in enumerate("ACBAB", start=2):
        scheduler.add(job(number, letter))
    assert order_of_starts(scheduler, model) == [4, 6, 2, 5, 3]


def test_short_prompts_and_such_without_a_common_prefix_keep_their_order() -> None:
    scheduler = make(seqs=1)
    for number in range(30):
        scheduler.add(sequence(number, [number % 2] * 5 if number < 15 else [number] * 20, 2, priority=1))
    assert order_of_starts(scheduler) == list(range(30))


def test_nobody_is_passed_over_for_longer_than_the_wait() -> None:
    scheduler = make(seqs=1)
    scheduler.add(job(0, "A"))
    scheduler.add(job(1, "B"))
    now, started = 0.0, {}
    for number in range(2, 200):
        scheduler.add(job(number, "A", 2))
        step = scheduler.schedule(now)
        started |= {one.seq_id: now for one in scheduler.started}
        scheduler.started.clear()
        assert step is not None
        scheduler.complete(step, [7] * len(step.sampling))
        now += 0.05
    # It would have started when the first one ended, after three steps.
    assert 0.15 + WAIT / 2 <= started[1] <= 0.15 + WAIT + 0.1
    assert len([number for number in started if number < 40]) > 20


def test_what_finds_no_room_keeps_nobody_waiting_that_does() -> None:
    scheduler = make(blocks=16, seqs=3)
    scheduler.add(job(0, "A", 20))
    step = scheduler.schedule(0.0)
    assert step is not None
    scheduler.complete(step, [7] * len(step.sampling))
    scheduler.add(job(1, "B", 2))
    scheduler.add(sequence(2, [*head("A"), *range(48)], 2, priority=1))
    scheduler.schedule(0.1)
    assert [seq.seq_id for seq in scheduler.running] == [0, 1]


#: Seconds. That a block is there is seen by those that wait for it in the next step.
_TWO_STEPS = 0.05


class Order:
    """Who would have started by now in order of arrival, reckoned anew from what is seen of a scheduler."""

    def __init__(self, wait: float) -> None:
        self._wait = wait
        self._arrived: list[Sequence] = []
        self._starts = 0
        self._late: dict[Sequence, float] = {}
        self.passed_over = 0

    def add(self, seq: Sequence) -> None:
        self._arrived.append(seq)

    def drop(self, seq: Sequence) -> None:
        """It was aborted, or moved up, before it started."""
        if seq in self._arrived[self._starts :]:
            self._arrived.remove(seq)

    def start(self, seq: Sequence, now: float) -> None:
        """Raises AssertionError where it should not have been this one."""
        due = [x for x, since in self._late.items() if _is_ready(x) and now - since >= self._wait + _TWO_STEPS]
        assert not due or seq in self._late, f"{due[0].seq_id} has waited for long enough"
        self._late.pop(seq, None)
        if self._starts < len(self._arrived):
            passed = self._arrived[self._starts]
            self._starts += 1
            if passed.state is SequenceState.WAITING and passed is not seq and passed.num_cached is None:
                self._late[passed] = now
                self.passed_over += 1

    def look(self, now: float) -> None:
        """Whoever waits for a block that is being computed does not wait for others' prefixes."""
        for seq in self._late:
            if seq.awaits is not None:
                self._late[seq] = now


def _is_ready(seq: Sequence) -> bool:
    return seq.state is SequenceState.WAITING and seq.awaits is None and seq.rank != 0


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_random_jobs_all_end_and_nobody_waits_for_too_long(seed: int, overlap: bool) -> None:
    draw = random.Random(seed)
    scheduler = make(draw.randrange(24, 60), seqs=draw.randrange(1, 6), wait=0.5, budget=draw.randrange(12, 60))
    model, order, now = FakeModel(4), Order(0.5), 0.0
    wanted: dict[int, list[int]] = {}
    seqs: dict[int, Sequence] = {}
    launched: tuple[Step, list[int]] | None = None
    pending, rate, letters = 120, draw.choice([0.6, 0.98]), draw.choice(["AB", "ABCDEFGHIJKLMNOP"])
    while pending or scheduler.has_work or launched:
        while pending and draw.random() < rate:
            pending -= 1
            heads = draw.choice(["", "T", "TX"]) + draw.choice(letters)
            seq = job(pending, heads, draw.randrange(1, 12), priority=int(draw.random() < 0.85))
            wanted[pending] = answer(list(seq.tokens), seq.params.max_tokens)
            seqs[pending] = seq
            scheduler.add(seq)
            if seq.priority:
                order.add(seq)
        if draw.random() < 0.05 and wanted:
            victim = seqs[draw.choice(list(wanted))]
            del wanted[victim.seq_id]
            if victim.num_cached is None:
                order.drop(victim)
            scheduler.abort(victim.seq_id)
        new = [seq for seq in seqs.values() if seq.num_cached is None and seq.rank]
        step = scheduler.schedule(now)
        for seq in new:
            if seq.rank == 0:
                order.drop(seq)
        for seq_id in [started.seq_id for started in scheduler.started]:
            if seqs[seq_id].rank:
                order.start(seqs[seq_id], now)
        scheduler.started.clear()
        order.look(now)
        done = None if step is None else (step, model.run(step))
        if overlap:
            done, launched = launched, done
        if done is not None:
            scheduler.complete(*done)
        scheduler.check_integrity()
        now += 0.02
    for number, tokens in wanted.items():
        assert seqs[number].tokens[seqs[number].num_prompt :] == tokens
    assert scheduler.pool.num_free == scheduler.pool.num_blocks
    assert order.passed_over > 0 or scheduler.max_num_seqs > 3


def test_of_many_prefixes_each_has_its_turn_in_time() -> None:
    """More jobs start in each step than runs of one prefix can be ended for."""
    scheduler, order, now = make(seqs=8, wait=0.5, budget=200), Order(0.5), 0.0
    seqs = [job(number, chr(65 + number % 20), 1) for number in range(600)]
    for seq in seqs:
        scheduler.add(seq)
        order.add(seq)
    while scheduler.has_work:
        step = scheduler.schedule(now)
        for seq_id in [started.seq_id for started in scheduler.started]:
            order.start(seqs[seq_id], now)
        scheduler.started.clear()
        order.look(now)
        assert step is not None
        scheduler.complete(step, [7] * len(step.sampling))
        now += 0.02
    assert order.passed_over > 300
