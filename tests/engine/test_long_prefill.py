"""Beside an interactive answer, long prompts share a bounded number of tokens of each step; elsewhere they do not."""

from __future__ import annotations

import random

import pytest

from fake_model import FakeModel, Pipeline, answer, sequence
from millrace_worker.config import EngineConfig
from millrace_worker.engine.block_pool import BlockPool
from millrace_worker.engine.engine import Engine
from millrace_worker.engine.scheduler import Scheduler
from millrace_worker.engine.sequence import Sequence
from millrace_worker.engine.step import Step
from millrace_worker.frames import AddSequence, SequenceParams

THRESHOLD = 16


def make(
    *, threshold: int = THRESHOLD, budget: int = 200, blocks: int = 512, seqs: int = 8
) -> tuple[Scheduler, FakeModel]:
    scheduler = Scheduler(
        BlockPool(blocks),
        block_size=4,
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        long_prefill_token_threshold=threshold,
    )
    return scheduler, FakeModel(4)


def prompt(length: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(1000) for _ in range(length)]


def run(scheduler: Scheduler, model: FakeModel) -> dict[int, int]:
    """Runs a step; how many tokens each sequence had of it."""
    step = scheduler.schedule()
    assert step is not None
    scheduler.complete(step, model.run(step))
    scheduler.check_integrity()
    return {part.seq.seq_id: part.count for part in step.scheduled}


def with_answer_under_way(*, priority: int = 0, threshold: int = THRESHOLD) -> tuple[Scheduler, FakeModel]:
    scheduler, model = make(threshold=threshold)
    scheduler.add(sequence(1, prompt(3, 1), max_tokens=40, priority=priority))
    run(scheduler, model)
    return scheduler, model


def test_beside_an_answer_a_long_prompt_has_so_many_tokens_of_each_step() -> None:
    scheduler, model = with_answer_under_way()
    scheduler.add(sequence(2, prompt(50, 2), max_tokens=2))
    steps = [run(scheduler, model) for _ in range(5)]
    assert steps == [{1: 1, 2: 16}, {1: 1, 2: 16}, {1: 1, 2: 16}, {1: 1, 2: 2}, {1: 1, 2: 1}]


def test_without_a_threshold_it_has_all() -> None:
    scheduler, model = with_answer_under_way(threshold=0)
    scheduler.add(sequence(2, prompt(50, 2)))
    assert run(scheduler, model) == {1: 1, 2: 50}


def test_a_prompt_as_long_as_the_threshold_is_not_long() -> None:
    scheduler, model = with_answer_under_way()
    scheduler.add(sequence(2, prompt(THRESHOLD, 2)))
    scheduler.add(sequence(3, prompt(THRESHOLD, 3)))
    assert run(scheduler, model) == {1: 1, 2: 16, 3: 16}


def test_what_the_cache_holds_does_not_make_a_prompt_long() -> None:
    scheduler, model = with_answer_under_way()
    system = prompt(40, 9)
    scheduler.add(sequence(2, [*system, 1], max_tokens=1))
    for _ in range(3):
        run(scheduler, model)
    scheduler.add(sequence(3, prompt(50, 3)))
    scheduler.add(sequence(4, [*system, *range(10)]))
    assert run(scheduler, model) == {1: 1, 3: 16, 4: 10}


def test_a_long_prompt_alone_is_not_bounded_and_no_longer_so_once_the_answer_has_ended() -> None:
    scheduler, model = make()
    scheduler.add(sequence(1, prompt(150, 1), max_tokens=3))
    assert run(scheduler, model) == {1: 150}
    scheduler.add(sequence(2, prompt(100, 2)))
    assert run(scheduler, model) == {1: 1, 2: 16}
    assert run(scheduler, model) == {1: 1, 2: 16}
    assert run(scheduler, model) == {2: 68}


def test_a_sequence_that_resumes_alone_is_not_bounded() -> None:
    scheduler, model = make(budget=50)
    whole = answer(prompt(60, 1), 30)
    scheduler.add(sequence(1, prompt(60, 1), 30, generated=whole[:20]))
    assert [run(scheduler, model) for _ in range(2)] == [{1: 50}, {1: 30}]


def test_an_answer_of_the_batch_lane_bounds_nobody() -> None:
    scheduler, model = with_answer_under_way(priority=1)
    scheduler.add(sequence(2, prompt(50, 2)))
    assert run(scheduler, model) == {1: 1, 2: 50}


def test_a_long_prompt_of_the_batch_lane_is_bounded_and_has_what_the_others_left() -> None:
    scheduler, model = with_answer_under_way()
    scheduler.add(sequence(2, prompt(60, 2), priority=1))
    assert run(scheduler, model) == {1: 1, 2: 16}
    scheduler.add(sequence(3, prompt(10, 3), max_tokens=1))
    # The batch lane's running ones come behind interactive ones that wait.
    assert run(scheduler, model) == {1: 1, 3: 10, 2: 6}
    scheduler.allowance = 1000
    assert run(scheduler, model) == {1: 1, 2: 16}


def test_what_a_bounded_prompt_of_the_batch_lane_may_not_have_is_for_the_others_of_its_lane() -> None:
    scheduler, model = with_answer_under_way()
    scheduler.add(sequence(2, prompt(100, 2), priority=1))
    run(scheduler, model)
    scheduler.add(sequence(3, prompt(3, 3), max_tokens=40, priority=1))
    run(scheduler, model)
    scheduler.allowance = 60
    assert [run(scheduler, model) for _ in range(2)] == [{1: 1, 2: 16, 3: 1}] * 2


def test_short_prompts_do_not_wait_for_a_long_one_that_is_under_way_nor_for_one_that_waits() -> None:
    scheduler, model = with_answer_under_way()
    scheduler.add(sequence(2, prompt(60, 2), max_tokens=1))
    run(scheduler, model)
    for number, length in ((3, 40), (4, 7), (5, 9)):
        scheduler.add(sequence(number, prompt(length, number), max_tokens=1))
    assert run(scheduler, model) == {1: 1, 2: 16, 4: 7, 5: 9}
    assert scheduler.num_waiting == 1, "the third one has nothing yet, no row either"
    assert run(scheduler, model) == {1: 1, 2: 16}
    # The last piece of the first long prompt leaves the next one a few tokens, and then all that there are.
    assert run(scheduler, model) == {1: 1, 2: 12, 3: 4}
    assert run(scheduler, model) == {1: 1, 3: 16}


def test_long_prompts_come_in_their_order_and_none_is_passed_over_for_ever_by_short_ones() -> None:
    scheduler, model = with_answer_under_way()
    for number in (2, 3, 4):
        scheduler.add(sequence(number, prompt(40, number), max_tokens=1))
    begun: list[int] = []
    for number in range(10, 20):
        scheduler.add(sequence(number, prompt(12, number), max_tokens=1))
        parts = run(scheduler, model)
        assert parts[number] == 12
        assert sum(parts.get(long, 0) for long in (2, 3, 4)) <= THRESHOLD
        begun += [long for long in (2, 3, 4) if long in parts and long not in begun]
    assert begun == [2, 3, 4]
    assert scheduler.num_waiting == 0


def test_long_prompts_that_were_begun_together_share_the_bound_once_somebody_answers() -> None:
    scheduler, model = make(budget=60)
    scheduler.add(sequence(2, prompt(100, 2)))
    run(scheduler, model)
    scheduler.add(sequence(3, prompt(100, 3)))
    assert run(scheduler, model) == {2: 40, 3: 20}
    assert run(scheduler, model) == {2: 1, 3: 16}


def test_a_long_batch_prompt_goes_on_beside_interactive_prompts_that_fill_the_bound() -> None:
    scheduler, model = make(budget=200)
    scheduler.add(sequence(1, prompt(3, 1), 500))
    run(scheduler, model)
    scheduler.add(sequence(2, prompt(100, 2), priority=1))
    run(scheduler, model)
    assert 0 < _computed(scheduler, 2) < 100
    for number in range(3, 60):
        scheduler.add(sequence(number, prompt(THRESHOLD, number), 1))
        run(scheduler, model)
        if _computed(scheduler, 2) >= 100:
            return
    pytest.fail("it never got on")


def _computed(scheduler: Scheduler, seq_id: int) -> int:
    """0 of one that waits."""
    return next((int(scheduler._counts.computed[seq.row]) for seq in scheduler.running if seq.seq_id == seq_id), 0)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_every_step_beside_an_answer_keeps_the_bound_and_all_answers_are_right(seed: int, overlap: bool) -> None:
    draw = random.Random(seed)
    scheduler, model = make(threshold=draw.choice([1, 5, 16]), budget=64, blocks=draw.randrange(40, 90), seqs=4)
    scheduler.allowance = draw.choice([None, 60])
    pipeline = Pipeline(scheduler, model, overlap=overlap)
    steps = spy(scheduler)
    wanted: dict[int, list[int]] = {}
    answers: dict[int, list[int]] = {}
    left = 40
    while left or pipeline.has_work:
        if left and draw.random() < 0.3:
            left -= 1
            text, count = prompt(draw.choice([4, 9, 60, 90]), left), draw.randrange(1, 20)
            wanted[left] = answer(text, count)
            scheduler.add(sequence(left, text, count, priority=draw.randrange(2)))
        for seq_id, tokens in pipeline.step().tokens:
            answers.setdefault(seq_id, []).extend(tokens)
    assert answers == wanted
    assert any(bounded for bounded, _ in steps)
    threshold = scheduler.long_prefill_token_threshold
    for bounded, long in steps:
        # What interactive prompts leave, and an eighth for the batch lane.
        assert not bounded or long <= threshold - (-threshold // 8)


def spy(scheduler: Scheduler) -> list[tuple[bool, int]]:
    """Of each step to come: whether somebody read along, and tokens of prompts that were long when it began."""
    seen: list[tuple[bool, int]] = []
    schedule = scheduler.schedule

    def watched() -> Step | None:
        bounded = scheduler._urgent_decode()
        step = schedule()
        if step is not None:
            tokens = scheduler._counts.tokens
            begun = [(part.count, tokens[part.seq.row] - part.samples - part.start) for part in step.scheduled]
            long = [count for count, before in begun if before > scheduler.long_prefill_token_threshold and count > 1]
            seen.append((bounded, sum(long)))
        return step

    scheduler.schedule = watched  # type: ignore[method-assign]
    return seen


def test_the_engine_has_the_bound_from_its_configuration_and_answers_as_without() -> None:
    answers, fullest = {}, {}
    for threshold in (0, 32):
        engine = Engine(EngineConfig(device="cpu", long_prefill_token_threshold=threshold, max_num_seqs=4))
        for number, length in ((1, 5), (2, 200)):
            params = SequenceParams(max_tokens=20, temperature=0.0)
            engine.add(AddSequence(number, prompt(length, number), [], params))
            output = engine.step()
        steps = [output]
        while engine.has_work:
            steps.append(engine.step())
        fullest[threshold] = max(step.batched_tokens for step in steps)
        answers[threshold] = {i: [t for step in steps for n, ids in step.tokens if n == i for t in ids] for i in (1, 2)}
    assert fullest == {0: 201, 32: 33}
    assert answers[0] == answers[32]


def test_of_many_long_prompts_only_the_first_are_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, model = make(seqs=64)
    scheduler.add(sequence(1, prompt(3, 1), max_tokens=60))
    run(scheduler, model)
    for number in range(2, 42):
        scheduler.add(sequence(number, prompt(50, number), max_tokens=2))
    run(scheduler, model)
    looked_at: list[int] = []
    hits = scheduler._prefixes.hits

    def counted(seq: Sequence) -> list[int]:
        looked_at.append(seq.seq_id)
        return hits(seq)

    monkeypatch.setattr(scheduler._prefixes, "hits", counted)
    run(scheduler, model)
    assert looked_at == [3, 4, 5, 6, 7, 8, 9, 10]
    # Shorter ones that come then go before them, and without an answer under way all go on.
    scheduler.add(sequence(99, prompt(10, 99), max_tokens=2))
    assert 99 in run(scheduler, model)
    scheduler.abort(40)
    scheduler.abort(1)
    scheduler.abort(99)
    assert len(run(scheduler, model)) > 2
    while scheduler.has_work:
        run(scheduler, model)
