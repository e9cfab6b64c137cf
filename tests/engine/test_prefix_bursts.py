"""Many jobs with one new system prompt: its tokens are computed once, whoever comes and goes meanwhile."""

from __future__ import annotations

import random

import pytest

from fake_model import FakeModel, Pipeline, answer, sequence
from millrace_worker.engine.block_pool import BlockPool
from millrace_worker.engine.scheduler import Scheduler
from millrace_worker.engine.step import Step

SYSTEM = 2048
CHUNK = 512
JOBS = 1024


class Burst:
    """Jobs with one system prompt in a scheduler that runs without a model, and how much of it was computed."""

    def __init__(self, *, overlap: bool, prefix_wait: float = 0.0) -> None:
        self.scheduler = Scheduler(
            BlockPool(4096),
            block_size=16,
            max_num_seqs=256,
            max_num_batched_tokens=CHUNK,
            prefix_wait=prefix_wait,
        )
        draw = random.Random(1)
        self.system = [draw.randrange(1000) for _ in range(SYSTEM)]
        self.computed = 0
        self.ended = 0
        self._overlap = overlap
        self._launched: Step | None = None
        self._now = 0.0

    def add(self, numbers: range, priority: int) -> None:
        for number in numbers:
            self.scheduler.add(sequence(number, [*self.system, 2000 + number, 7], 3, priority=priority))

    def step(self) -> None:
        self._now += 0.02
        step = self.scheduler.schedule(self._now)
        for part in step.scheduled if step is not None else ():
            self.computed += max(0, min(part.start + part.count, SYSTEM) - part.start)
        if self._overlap:
            step, self._launched = self._launched, step
        if step is not None:
            self.ended += len(self.scheduler.complete(step, [7] * len(step.sampling)).finished)
        self.scheduler.check_integrity()

    def finish(self) -> None:
        while self.scheduler.has_work:
            self.step()


@pytest.fixture(params=[pytest.param(False, id="one"), pytest.param(True, id="two-in-flight")])
def burst(request: pytest.FixtureRequest) -> Burst:
    return Burst(overlap=request.param)


@pytest.mark.parametrize("prefix_wait", [0.0, 2.0])
def test_of_one_lane(burst: Burst, prefix_wait: float) -> None:
    burst = Burst(overlap=burst._overlap, prefix_wait=prefix_wait)
    burst.add(range(JOBS), 1)
    burst.finish()
    assert burst.computed == SYSTEM
    assert burst.ended == JOBS


def test_whose_first_job_is_aborted_midway(burst: Burst) -> None:
    burst.add(range(JOBS), 1)
    for _ in range(3):
        burst.step()
    burst.scheduler.abort(0)
    burst.finish()
    assert SYSTEM <= burst.computed <= SYSTEM + CHUNK
    assert burst.ended == JOBS - 1


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_of_two_lanes(burst: Burst, steps: int) -> None:
    """Interactive jobs do not wait for what the batch lane computes: they take it over."""
    burst.add(range(JOBS // 2), 1)
    for _ in range(steps):
        burst.step()
    burst.add(range(JOBS // 2, JOBS), 0)
    burst.finish()
    assert SYSTEM <= burst.computed <= SYSTEM + CHUNK
    assert burst.ended == JOBS


def test_whose_interactive_job_that_took_over_is_aborted(burst: Burst) -> None:
    burst.add(range(JOBS), 1)
    for _ in range(2):
        burst.step()
    burst.add(range(JOBS, JOBS + 1), 0)
    burst.step()
    burst.scheduler.abort(JOBS)
    burst.finish()
    assert SYSTEM <= burst.computed <= SYSTEM + 2 * CHUNK
    assert burst.ended == JOBS


@pytest.mark.parametrize("overlap", [False, True])
def test_a_prompt_that_was_taken_over_goes_on_with_what_the_other_computed(overlap: bool) -> None:
    model = FakeModel(4)
    scheduler = Scheduler(BlockPool(64), block_size=4, max_num_seqs=4, max_num_batched_tokens=8)
    system = [*range(40)]
    batch = sequence(1, [*system, 50], 5, priority=1)
    urgent = sequence(2, [*system, 60], 5)
    pipeline = Pipeline(scheduler, model, overlap=overlap)
    scheduler.add(batch)
    pipeline.step()
    pipeline.step()
    scheduler.add(urgent)
    pipeline.step()
    assert [seq.seq_id for seq in scheduler.running] == [2]
    while pipeline.has_work:
        pipeline.step()
    assert batch.num_preempted == 1
    assert batch.tokens[41:] == answer([*system, 50], 5)
    assert urgent.tokens[41:] == answer([*system, 60], 5)
