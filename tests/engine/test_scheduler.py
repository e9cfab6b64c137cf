"""The scheduler against a fake model that checks every KV slot it reads."""

from __future__ import annotations

import random

import pytest

from fake_model import FakeModel, Pipeline, answer, run_all, run_step, sequence
from millrace_bench.workloads import chat
from millrace_worker.engine.block_pool import BlockPool
from millrace_worker.engine.filling import LEAST_COST
from millrace_worker.engine.scheduler import _ALERT_STEPS, _MOST_PREEMPTIONS, Scheduler
from millrace_worker.engine.sequence import SequenceState
from millrace_worker.engine.step import SEQUENCE_COST, Step
from millrace_worker.frames import Started


def make(
    num_blocks: int = 64, *, block_size: int = 4, seqs: int = 8, budget: int = 64, caching: bool = True
) -> tuple[Scheduler, FakeModel]:
    scheduler = Scheduler(
        BlockPool(num_blocks),
        block_size=block_size,
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        enable_prefix_caching=caching,
    )
    return scheduler, FakeModel(block_size)


def prompt(length: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(1000) for _ in range(length)]


def test_a_prompt_runs_in_one_step_and_then_token_by_token() -> None:
    scheduler, model = make()
    seq = sequence(1, prompt(6), max_tokens=3)
    scheduler.add(seq)
    step = scheduler.schedule()
    assert step is not None
    assert [(p.start, p.count, p.samples) for p in step.scheduled] == [(0, 6, True)]
    assert seq.block_table == [0, 1]
    scheduler.complete(step, model.run(step))
    step = scheduler.schedule()
    assert step is not None
    assert [(p.start, p.count, p.samples) for p in step.scheduled] == [(6, 1, True)]
    scheduler.complete(step, model.run(step))
    assert run_step(scheduler, model).finished == [(1, "length")]
    assert seq.tokens[6:] == answer(prompt(6), 3)
    assert not scheduler.has_work


def test_an_arriving_job_starts_in_the_step_after_another_ends() -> None:
    scheduler, model = make(seqs=2)
    scheduler.add(sequence(1, prompt(5, 1), max_tokens=2))
    scheduler.add(sequence(2, prompt(5, 2), max_tokens=9))
    run_step(scheduler, model)
    late = sequence(3, prompt(7, 3), max_tokens=2)
    scheduler.add(late)
    assert run_step(scheduler, model).finished == [(1, "length")]
    assert late.state is SequenceState.WAITING
    step = scheduler.schedule()
    assert step is not None
    assert [(p.seq.seq_id, p.count) for p in step.scheduled] == [(2, 1), (3, 7)]
    # Sequence 1 held blocks 0 and 1; 0 is full and cached, so 1 is reused first, then the untouched ones.
    assert late.block_table == [1, 4]
    scheduler.complete(step, model.run(step))


def test_a_long_prompt_is_computed_in_chunks_beside_running_sequences() -> None:
    scheduler, model = make(budget=8)
    scheduler.add(sequence(1, prompt(3, 1), max_tokens=6))
    run_step(scheduler, model)
    scheduler.add(sequence(2, prompt(20, 2), max_tokens=1))
    chunks = []
    while any(s.seq_id == 2 for s in scheduler.running) or scheduler.num_waiting:
        step = scheduler.schedule()
        assert step is not None
        assert step.num_tokens <= 8
        chunks += [(p.start, p.count, p.samples) for p in step.scheduled if p.seq.seq_id == 2]
        scheduler.complete(step, model.run(step))
    assert chunks == [(0, 7, False), (7, 7, False), (14, 6, True)]


def test_blocks_of_a_common_prefix_are_shared() -> None:
    scheduler, model = make()
    system = prompt(10)
    first, second = sequence(1, [*system, 1, 2], 8), sequence(2, [*system, 3, 4], 8)
    scheduler.add(first)
    run_step(scheduler, model)
    scheduler.add(second)
    run_step(scheduler, model)
    assert first.block_table[:2] == second.block_table[:2] == [0, 1]
    assert second.block_table[2] not in first.block_table
    assert second.num_cached == 8
    assert scheduler.started == [Started(1, 0), Started(2, 8, {"gpu": 8})]


def test_the_last_token_of_a_fully_cached_prompt_is_computed_again() -> None:
    scheduler, model = make()
    scheduler.add(sequence(1, prompt(8), 1))
    run_all(scheduler, model)
    scheduler.add(sequence(2, prompt(8), 1))
    step = scheduler.schedule()
    assert step is not None
    assert [(p.start, p.count) for p in step.scheduled] == [(4, 4)]
    scheduler.complete(step, model.run(step))


@pytest.mark.parametrize("overlap", [False, True])
def test_an_answer_is_found_once_its_sequence_has_ended(overlap: bool) -> None:
    scheduler, model = make()
    scheduler.add(sequence(1, prompt(6), 9))
    run_all(scheduler, model, overlap=overlap)
    # The last of the 15 tokens was never computed, so three blocks are full.
    scheduler.add(sequence(2, [*prompt(6), *answer(prompt(6), 9), 5], 2))
    run_all(scheduler, model, overlap=overlap)
    assert scheduler.started == [Started(1, 0), Started(2, 12, {"gpu": 12})]


@pytest.mark.parametrize("overlap", [False, True])
def test_a_preempted_sequence_finds_what_it_had_generated(overlap: bool) -> None:
    scheduler, model = make(seqs=1)
    seq = sequence(1, prompt(6), 20, priority=1)
    scheduler.add(seq)
    pipeline = Pipeline(scheduler, model, overlap=overlap)
    while seq.num_generated < 7:
        pipeline.step()
    held = seq.block_table[:3]
    scheduler.add(sequence(2, prompt(5, 2), 1))
    pipeline.step()
    assert seq.state is SequenceState.WAITING
    while seq.state is SequenceState.WAITING:
        pipeline.step()
    # Of its 13 tokens, or 14 with two steps in flight, three blocks were left to it.
    assert seq.block_table[:3] == held
    assert len(seq.block_hashes) == 3


def test_a_burst_with_one_system_prompt_computes_it_once() -> None:
    scheduler, model = make(256, seqs=16, budget=24)
    system = prompt(40)
    for i in range(16):
        scheduler.add(sequence(i, [*system, 900 + i, i], 3))
    computed = 0
    while scheduler.has_work:
        step = scheduler.schedule()
        assert step is not None
        computed += step.num_tokens
        scheduler.complete(step, model.run(step))
        scheduler.check_integrity()
    assert computed == 40 + 16 * (2 + 2)


def test_without_prefix_caching_nothing_is_shared() -> None:
    scheduler, model = make(caching=False)
    for i in range(2):
        scheduler.add(sequence(i, prompt(12), 2))
        run_all(scheduler, model)
    assert [started.cached for started in scheduler.started] == [0, 0]


@pytest.mark.parametrize("overlap", [False, True])
def test_the_youngest_is_preempted_and_resumes_with_its_tokens(overlap: bool) -> None:
    scheduler, model = make(num_blocks=8, seqs=3)
    old, young = sequence(1, prompt(12, 1), 12), sequence(2, prompt(8, 2), 12)
    for seq in (old, young):
        scheduler.add(seq)
    answers = run_all(scheduler, model, overlap=overlap)
    assert scheduler.num_preemptions >= 1
    assert answers == {1: answer(prompt(12, 1), 12), 2: answer(prompt(8, 2), 12)}


def test_a_step_is_scheduled_while_the_one_before_it_runs() -> None:
    scheduler, model = make()
    tokens = answer(prompt(6), 3)
    by_length, by_stop = sequence(1, prompt(6), max_tokens=2), sequence(2, prompt(6), max_tokens=9, stop=(tokens[1],))
    scheduler.add(by_length)
    scheduler.add(by_stop)
    pipeline = Pipeline(scheduler, model, overlap=True)
    assert pipeline.step().tokens == []
    assert pipeline.step().tokens == [(1, [tokens[0]])]  # the other one waits for the prompt's blocks
    # Its second token is on its way: there is nothing more to schedule for the first sequence.
    step = scheduler.schedule()
    assert step is not None
    assert [part.seq.seq_id for part in step.scheduled] == [2]


def test_an_end_that_the_host_could_not_foresee_costs_one_token_that_nobody_sees() -> None:
    scheduler, model = make()
    tokens = answer(prompt(6), 3)
    scheduler.add(sequence(1, prompt(6), max_tokens=9, stop=(tokens[1],)))
    pipeline = Pipeline(scheduler, model, overlap=True)
    seen = []
    while pipeline.has_work:
        done = pipeline.step()
        seen.append((done.tokens, done.finished))
    assert seen == [([], []), ([(1, [tokens[0]])], []), ([(1, [tokens[1]])], [(1, "stop")]), ([], [])]
    assert scheduler.pool.num_free == 64


def test_batch_is_preempted_before_interactive_and_admitted_after_it() -> None:
    scheduler, model = make(num_blocks=7, seqs=3)
    batch = sequence(1, prompt(8, 1), 12, priority=1)
    scheduler.add(batch)
    run_step(scheduler, model)
    urgent = sequence(2, prompt(10, 2), 12, priority=0)
    scheduler.add(urgent)
    while urgent.state is not SequenceState.FINISHED:
        run_step(scheduler, model)
        assert urgent.state is not SequenceState.WAITING
    assert scheduler.num_preemptions == 1
    assert run_all(scheduler, model)
    assert batch.tokens[8:] == answer(prompt(8, 1), 12)


def test_a_waiting_interactive_sequence_is_not_overtaken_by_batch() -> None:
    scheduler, model = make(num_blocks=8, seqs=4)
    scheduler.add(sequence(1, prompt(20, 1), 3))
    run_step(scheduler, model)
    large, small = sequence(2, prompt(16, 2), 2), sequence(3, prompt(2, 3), 2, priority=1)
    scheduler.add(small)
    scheduler.add(large)
    run_step(scheduler, model)
    assert [s.seq_id for s in scheduler.running] == [1]


def test_a_resumed_sequence_computes_its_tokens_and_goes_on() -> None:
    whole = answer(prompt(6), 9)
    scheduler, model = make()
    scheduler.add(sequence(1, prompt(6), 9, generated=whole[:5]))
    assert run_all(scheduler, model) == {1: whole[5:]}


def test_stop_tokens_apply_only_after_min_tokens() -> None:
    scheduler, model = make()
    tokens = answer(prompt(6), 9)
    for min_tokens, expected in ((0, 1), (1, 2)):
        seq = sequence(1, prompt(6), 9)
        params = {"stop_token_ids": (tokens[0], tokens[1]), "min_tokens": min_tokens}
        seq.params = type(seq.params)(max_tokens=9, **params)
        scheduler.add(seq)
        finished = []
        while scheduler.has_work:
            finished += run_step(scheduler, model).finished
        assert finished == [(1, "stop")]
        assert seq.num_generated == expected


def test_abort_gives_everything_back() -> None:
    scheduler, model = make(seqs=2)
    for i in range(3):
        scheduler.add(sequence(i, prompt(9, i), 9))
    run_step(scheduler, model)
    for i in range(3):
        scheduler.abort(i)
        scheduler.check_integrity()
    scheduler.abort(17)
    assert not scheduler.has_work
    assert scheduler.pool.num_free == 64


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_random_traffic_gives_every_sequence_its_own_answer(seed: int, overlap: bool) -> None:
    """Arrivals, shared prefixes, preemption, chunks, stops, aborts: every slot is checked, every answer is right."""
    draw = random.Random(seed)
    scheduler, model = make(
        draw.randrange(12, 40),
        block_size=draw.choice([1, 4, 8]),
        seqs=draw.randrange(1, 6),
        budget=draw.randrange(6, 40),
    )
    scheduler.allowance = draw.choice([None, LEAST_COST, 60])
    capacity = scheduler.pool.num_blocks * scheduler.block_size
    heads = [prompt(draw.randrange(1, 20), 100 + i) for i in range(3)]
    wanted: dict[int, list[int]] = {}
    answers: dict[int, list[int]] = {}
    aborted: set[int] = set()
    pending = 40
    pipeline = Pipeline(scheduler, model, overlap=overlap)
    while pending or pipeline.has_work:
        if pending and draw.random() < 0.5:
            pending -= 1
            text = (draw.choice(heads) + prompt(draw.randrange(1, 12), draw.randrange(10**6)))[: capacity - 2]
            length = draw.randrange(1, min(12, capacity - len(text)) + 1)
            wanted[pending] = answer(text, length)
            stop = draw.choice(wanted[pending]) if draw.random() < 0.5 else -1
            scheduler.add(sequence(pending, text, length, priority=draw.randrange(2), stop=(stop,)))
            if stop >= 0:
                del wanted[pending][wanted[pending].index(stop) + 1 :]
        elif draw.random() < 0.03 and wanted:
            aborted.add(victim := draw.choice(list(wanted)))
            scheduler.abort(victim)
        elif pipeline.has_work:
            for seq_id, tokens in pipeline.step().tokens:
                answers.setdefault(seq_id, []).extend(tokens)
    for seq_id, tokens in wanted.items():
        if seq_id not in aborted:
            assert answers[seq_id] == tokens
    assert scheduler.pool.num_free == scheduler.pool.num_blocks


def test_kv_waste_on_the_chat_workload_is_under_four_percent() -> None:
    """Where reserving max_model_len for each sequence would leave most of the cache empty."""
    max_model_len = 4096
    scheduler = Scheduler(BlockPool(8192), block_size=16, max_num_seqs=256, max_num_batched_tokens=8192)
    for i, job in enumerate(chat(32000)):
        scheduler.add(sequence(i, job.prompt, job.max_tokens))
    allocated = used = reserved = 0
    while (step := scheduler.schedule()) is not None:
        load = scheduler.load()
        allocated += load.allocated_slots
        used += load.used_slots
        reserved += load.running * max_model_len
        scheduler.complete(step, [7] * sum(p.samples for p in step.scheduled))
    assert 0 < 1 - used / allocated < 0.04
    assert 1 - used / reserved > 0.60


def parts_of(step: Step | None) -> list[tuple[int, int]]:
    """(sequence, tokens), in the order of the scheduler's turns."""
    assert step is not None
    return [(part.seq.seq_id, part.count) for part in step.scheduled]


def test_an_interactive_sequence_takes_the_row_of_the_youngest_batch_one_at_once() -> None:
    scheduler, model = make(seqs=2)
    old, young = (sequence(i, prompt(5, i), 12, priority=1) for i in (1, 2))
    scheduler.add(old)
    scheduler.add(young)
    run_step(scheduler, model)
    scheduler.add(sequence(3, prompt(7, 3), 2))
    step = scheduler.schedule()
    assert parts_of(step) == [(1, 1), (3, 7)]
    assert [seq.seq_id for seq in scheduler.running] == [3, 1]
    assert scheduler.num_preemptions == young.num_preempted == 1
    assert step is not None
    scheduler.complete(step, model.run(step))
    assert run_step(scheduler, model).finished == [(3, "length")]
    # The one that was set back is the next, and its first block is still in the cache.
    step = scheduler.schedule()
    assert parts_of(step) == [(1, 1), (2, 2)]
    assert step is not None
    scheduler.complete(step, model.run(step))
    run_all(scheduler, model)
    assert (old.tokens[5:], young.tokens[5:]) == (answer(prompt(5, 1), 12), answer(prompt(5, 2), 12))


def test_an_interactive_sequence_takes_as_many_blocks_as_it_needs_and_no_more() -> None:
    scheduler, model = make(num_blocks=12)
    for i in range(1, 5):
        scheduler.add(sequence(i, prompt(8, i), 12, priority=1))
    for _ in range(3):
        run_step(scheduler, model)
    assert scheduler.pool.num_free == 0
    # Four blocks: the two youngest have three each.
    scheduler.add(sequence(5, prompt(16, 5), 2))
    step = scheduler.schedule()
    assert [seq.seq_id for seq in scheduler.running] == [5, 1, 2]
    assert parts_of(step) == [(1, 1), (2, 1), (5, 16)]


def test_nothing_is_set_back_for_a_sequence_that_would_not_fit_all_the_same() -> None:
    scheduler, model = make(num_blocks=10)
    scheduler.add(sequence(1, prompt(28, 1), 12))
    scheduler.add(sequence(2, prompt(4, 2), 2, priority=1))
    run_step(scheduler, model)
    scheduler.add(sequence(3, prompt(16, 3), 2))
    assert parts_of(scheduler.schedule()) == [(1, 1), (2, 1)]
    assert scheduler.num_preemptions == 0


def test_blocks_that_are_shared_are_no_gain() -> None:
    scheduler, model = make(num_blocks=11)
    system = prompt(16)
    scheduler.add(sequence(1, [*system, 1], 12))
    run_step(scheduler, model)
    scheduler.add(sequence(2, [*system, 2], 12, priority=1))
    run_step(scheduler, model)
    scheduler.add(sequence(3, prompt(24, 3), 2))
    # Six blocks and one to grow for the first; of the second one's five only one is its own.
    assert scheduler.pool.num_free == 5
    scheduler.add(sequence(4, prompt(4, 4), 2))
    assert parts_of(scheduler.schedule()) == [(1, 1), (2, 1)]
    scheduler, model = make(num_blocks=12)
    scheduler.add(sequence(1, [*system, 1], 12))
    run_step(scheduler, model)
    scheduler.add(sequence(2, [*system, 2], 12, priority=1))
    run_step(scheduler, model)
    scheduler.add(sequence(3, prompt(24, 3), 2))
    assert parts_of(scheduler.schedule()) == [(1, 1), (3, 24)]


def test_blocks_that_several_share_with_the_newcomer_are_no_gain() -> None:
    scheduler, model = make(num_blocks=12)
    system = prompt(16)
    for i in (1, 2):
        scheduler.add(sequence(i, [*system, i], 12, priority=1))
        run_step(scheduler, model)
    assert scheduler.pool.num_free == 6
    # Eight blocks beside the four of the system prompt: each of the others gives one of its own.
    scheduler.add(sequence(3, [*system, *prompt(31, 3)], 1))
    assert parts_of(scheduler.schedule()) == [(3, 31)]
    assert [seq.seq_id for seq in scheduler.running] == [3]
    scheduler.check_integrity()


def test_interactive_prompts_come_before_batch_prompts_and_bound_them() -> None:
    scheduler, _ = make(num_blocks=256, budget=100, seqs=8)
    scheduler.allowance = 60
    scheduler.add(sequence(1, prompt(400, 1), 2, priority=1))
    assert parts_of(scheduler.schedule()) == [(1, 100)]
    scheduler.add(sequence(2, prompt(30, 2), 9))
    # The step with a first token has the least of the other lane; the next one is as full as it may be.
    step = scheduler.schedule()
    assert parts_of(step) == [(2, 30), (1, LEAST_COST - SEQUENCE_COST)]
    assert step is not None
    scheduler.complete(step, [7])
    step = scheduler.schedule()
    assert parts_of(step) == [(2, 1), (1, 60 - (1 + SEQUENCE_COST) - SEQUENCE_COST)]
    assert step is not None
    assert step.cost == 60


def test_the_batch_lane_has_some_of_every_step() -> None:
    scheduler, _ = make(num_blocks=256, budget=100, seqs=8)
    scheduler.allowance = 60
    scheduler.add(sequence(1, prompt(400, 1), 2, priority=1))
    scheduler.schedule()
    scheduler.add(sequence(2, prompt(70, 2), 9))
    assert parts_of(scheduler.schedule()) == [(2, 70), (1, LEAST_COST - SEQUENCE_COST)]


def test_interactive_prompts_that_fill_every_step_leave_running_batch_sequences_some_tokens() -> None:
    scheduler, _ = make(num_blocks=256, budget=16)
    for i in (1, 2, 3):
        scheduler.add(sequence(i, prompt(3, i), 9, priority=1))
    scheduler.schedule()
    scheduler.add(sequence(4, prompt(100, 4), 9))
    assert parts_of(scheduler.schedule()) == [(1, 1), (2, 1), (4, 14)]


def test_batch_sequences_that_do_not_fit_together_take_turns() -> None:
    scheduler, model = make(seqs=8)
    for i in range(1, 6):
        scheduler.add(sequence(i, prompt(4, i), 30, priority=1))
    run_step(scheduler, model)
    scheduler.allowance = 3 * (SEQUENCE_COST + 1)
    scheduler.add(sequence(9, prompt(3, 9), 5))
    turns = []
    for _ in range(4):
        step = scheduler.schedule()
        turns.append(parts_of(step))
        assert step is not None
        scheduler.complete(step, model.run(step))
    assert turns == [
        [(1, 1), (9, 3)],
        [(9, 1), (2, 1), (3, 1)],
        [(9, 1), (4, 1), (5, 1)],
        [(9, 1), (1, 1), (2, 1)],
    ]


def test_bounds_end_when_interactive_sequences_stay_away() -> None:
    scheduler, model = make(num_blocks=512, budget=100)
    scheduler.allowance = 50
    scheduler.add(sequence(1, prompt(3, 1), 1))
    run_step(scheduler, model)
    scheduler.add(sequence(2, prompt(1000, 2), 1, priority=1))
    assert parts_of(scheduler.schedule()) == [(2, 42)]
    scheduler.abort(2)
    for _ in range(_ALERT_STEPS):
        scheduler.schedule()
    scheduler.add(sequence(3, prompt(1000, 3), 1, priority=1))
    assert parts_of(scheduler.schedule()) == [(3, 100)]


def test_a_batch_sequence_that_was_passed_over_often_enough_runs_and_is_not_set_back() -> None:
    scheduler, model = make(seqs=1)
    batch = sequence(0, prompt(4, 99), 3, priority=1)
    scheduler.add(batch)
    run_step(scheduler, model)
    ended = []
    for i in range(1, 30):
        scheduler.add(sequence(i, prompt(3, i), 1))
        ended += [seq_id for seq_id, _ in run_step(scheduler, model).finished]
    assert batch.tokens[4:] == answer(prompt(4, 99), 3)
    assert batch.num_preempted == 1
    # Eight interactive ones ran before it; then it ran to its end, and they again.
    assert ended[:10] == [1, 2, 3, 4, 5, 6, 7, 8, 0, 9]


def test_a_batch_sequence_is_set_back_so_many_times_and_no_more() -> None:
    scheduler, model = make(seqs=1)
    batch = sequence(0, prompt(4, 99), 30, priority=1)
    scheduler.add(batch)
    run_step(scheduler, model)
    for i in range(1, 9):
        scheduler.add(sequence(i, prompt(3, i), 1))
        run_step(scheduler, model)
        run_step(scheduler, model)
    assert batch.num_preempted == _MOST_PREEMPTIONS
    assert scheduler.num_waiting == 4


def test_those_that_are_set_back_keep_their_order() -> None:
    scheduler, model = make(seqs=3)
    for i in (1, 2, 3):
        scheduler.add(sequence(i, prompt(4, i), 12, priority=1))
    scheduler.add(sequence(4, prompt(4, 4), 12, priority=1))
    run_step(scheduler, model)
    for i in (7, 8):
        scheduler.add(sequence(i, prompt(4, i), 1))
    run_step(scheduler, model)
    assert [seq.seq_id for seq in scheduler.running] == [1]
    run_step(scheduler, model)
    assert [seq.seq_id for seq in scheduler.running] == [1, 2, 3]


def test_an_interactive_sequence_does_not_wait_for_a_block_that_a_batch_one_computes() -> None:
    scheduler, model = make(num_blocks=256, budget=100)
    scheduler.allowance = 40
    system = prompt(60)
    scheduler.add(sequence(0, prompt(3, 1), 9))
    run_step(scheduler, model)
    scheduler.add(sequence(1, [*system, 1], 2, priority=1))
    run_step(scheduler, model)
    scheduler.add(sequence(2, [*system, 2], 2))
    scheduler.add(sequence(3, [*system, 3], 2))
    step = scheduler.schedule()
    # 20 of the 61 tokens are in the cache; the third waits for the second, which is quick.
    assert parts_of(step)[:2] == [(0, 1), (2, 41)]
    assert step is not None
    assert 3 not in dict(parts_of(step))
    scheduler.complete(step, model.run(step))
    scheduler.check_integrity()
    assert (3, 1) in parts_of(scheduler.schedule())


@pytest.mark.parametrize("overlap", [False, True])
def test_answers_do_not_show_that_a_sequence_was_set_back(overlap: bool) -> None:
    scheduler, model = make(num_blocks=24, seqs=2, budget=40)
    scheduler.allowance = 30
    wanted: dict[int, list[int]] = {}
    answers: dict[int, list[int]] = {}
    pipeline = Pipeline(scheduler, model, overlap=overlap)
    for i in range(60):
        urgent = i % 6 == 5
        text, count = prompt(4 + i % 17, i), 3 if urgent else 12
        wanted[i] = answer(text, count)
        scheduler.add(sequence(i, text, count, priority=0 if urgent else 1))
        for seq_id, tokens in pipeline.step().tokens:
            answers.setdefault(seq_id, []).extend(tokens)
    while pipeline.has_work:
        for seq_id, tokens in pipeline.step().tokens:
            answers.setdefault(seq_id, []).extend(tokens)
    assert scheduler.num_preemptions > 5
    assert answers == wanted
    assert scheduler.pool.num_free == 24


def test_sequences_of_different_salts_share_no_blocks_and_do_not_wait_for_each_other() -> None:
    scheduler, model = make(num_blocks=64, seqs=8, budget=64)
    for number, salt in enumerate(("", "a:", "b:", "a:")):
        scheduler.add(sequence(number, prompt(13), max_tokens=4, salt=salt))
    step = scheduler.schedule()
    assert step is not None
    # The second of "a:" waits for the first; nobody else does.
    assert [part.seq.seq_id for part in step.scheduled] == [0, 1, 2]
    scheduler.complete(step, model.run(step))
    run_step(scheduler, model)
    assert {started.seq_id: started.cached for started in scheduler.started} == {0: 0, 1: 0, 2: 0, 3: 12}
    tables = {seq.seq_id: set(seq.block_table) for seq in scheduler.running}
    assert len(tables[1] & tables[3]) == 3
    for one, other in ((0, 1), (0, 2), (1, 2), (0, 3), (2, 3)):
        assert not tables[one] & tables[other]
    run_all(scheduler, model)
    late = [sequence(10 + n, prompt(13), salt=salt) for n, salt in enumerate(("", "a:", "c:"))]
    for seq in late:
        scheduler.add(seq)
    run_step(scheduler, model)
    assert [seq.num_cached for seq in late] == [12, 12, 0]
