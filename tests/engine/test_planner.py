"""What is planned is counted, and reaches the output of the step that it is of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engine_parts import make_engine
from greedy import save
from millrace_kernels import PlanShape, SharedReads, SharedRun
from millrace_worker.engine import shared_runs
from millrace_worker.engine.engine import Engine
from millrace_worker.engine.graphs import DecodeGraphs
from millrace_worker.engine.mixed_graphs import PREFILLS, MixedGraphs
from millrace_worker.engine.planner import Planner
from millrace_worker.frames import AddSequence, SequenceParams, StepOutput

HEAD = [(7 * i) % 97 for i in range(128)]
SHAPE = PlanShape(8, 2, 2, 16, shared=True)


@pytest.fixture(autouse=True)
def little_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_runs, "_LEAST_SAVED_BYTES", 1)
    monkeypatch.setattr(shared_runs, "_LEAST_TOKENS", 64)


def test_reads_are_of_the_last_plan_and_are_taken_once() -> None:
    planner, lens, lines = Planner(), np.full(8, 1000), np.arange(8)
    shape, runs = PlanShape(8, 2, 4, 16, shared=True), [SharedRun(np.arange(8), 0, 512)]
    planner.plan(lens, lines, shape, runs)
    assert planner.take_reads() == SharedReads(512, 7 * 512)
    assert planner.take_reads() == SharedReads()
    planner.plan(lens, lines, shape, [])
    assert planner.take_reads() == SharedReads()


def test_a_shape_without_sharing_counts_nothing() -> None:
    planner, shape = Planner(), PlanShape(8, 2, 4, 16)
    plan = planner.plan(np.full(8, 1000), np.arange(8), shape, [SharedRun(np.arange(8), 0, 512)])
    assert "shared" not in plan
    assert planner.take_reads() == SharedReads()


def outputs_of(directory: Path, shape: PlanShape | None, *, overlap: bool) -> list[StepOutput]:
    """Six sequences behind one beginning of eight blocks, with one token of their own and five of an answer."""
    engine = make_engine(directory, 8, 512, 16, 200, True, overlap=overlap)
    engine.runner._plan_shape = shape
    for i in range(6):
        engine.add(AddSequence(i, [*HEAD, i], [], SequenceParams(max_tokens=5, temperature=0.0)))
    outputs = []
    while engine.has_work:
        outputs.append(engine.step())
    return outputs


@pytest.mark.parametrize("overlap", [pytest.param(False, id="one"), pytest.param(True, id="two-in-flight")])
def test_a_step_says_what_its_attention_shares(overlap: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, but that the reference computes, which needs no plan."""
    monkeypatch.setattr(shared_runs, "_LEAST_SAVED_BYTES", 1)
    monkeypatch.setattr(shared_runs, "_LEAST_TOKENS", 64)
    directory = save("llama3-tied", tmp_path)
    shared = outputs_of(directory, SHAPE, overlap=overlap)
    # The first one computes the beginning for the others, which wait for it.
    several = [output for output in shared if output.sequences > 1]
    assert len(several) >= 5
    for output in shared:
        read = 128 if output in several else 0
        assert (output.shared_read, output.shared_saved) == (read, read * max(0, output.sequences - 1))
    on_cpu = outputs_of(directory, None, overlap=overlap)
    assert [output.tokens for output in on_cpu] == [output.tokens for output in shared]
    assert {(output.shared_read, output.shared_saved) for output in on_cpu} == {(0, 0)}


class Replays:
    """In place of captured graphs, which only a GPU has: counts, and computes nothing."""

    def __init__(self) -> None:
        self.count = 0

    def __getitem__(self, key: object) -> Replays:
        return self

    def replay(self) -> None:
        self.count += 1


def with_graphs(engine: Engine) -> tuple[Replays, Replays]:
    """Makes `engine` plan as if its decode steps, and its short steps with prefills, were captured."""
    runner = engine.runner
    runner._plan_shape = SHAPE
    logits = torch.zeros((SHAPE.rows + PREFILLS, runner.model.config.vocab_size))
    parts = (runner.model, runner.kv_cache, runner.last_tokens, runner.device_tables.blocks, logits, SHAPE)
    runner.graphs = DecodeGraphs(*parts, runner.planner)
    runner.mixed_graphs = MixedGraphs(*parts, runner.planner, max_tokens=runner.max_num_batched_tokens)
    decodes, mixed = Replays(), Replays()
    runner.graphs._graphs, runner.mixed_graphs._graphs = decodes, mixed  # type: ignore[assignment]
    return decodes, mixed


def test_steps_in_graphs_are_counted_too(tmp_path: Path) -> None:
    engine = make_engine(save("llama3-tied", tmp_path), 8, 512, 16, 200, True)
    decodes, mixed = with_graphs(engine)
    for i in range(6):
        engine.add(AddSequence(i, [*HEAD, i], [], SequenceParams(max_tokens=9, temperature=0.0)))
    outputs = []
    while engine.has_work:
        if len(outputs) == 4:
            engine.add(AddSequence(6, [9] * 50, [], SequenceParams(max_tokens=2, temperature=0.0)))
        outputs.append(engine.step())
    beside = outputs[4]
    assert (beside.sequences, beside.batched_tokens) == (7, 6 + 50)
    assert (beside.shared_read, beside.shared_saved) == (128, 5 * 128)
    assert mixed.count == 2, "the first prompt's step, and that of the last prompt"
    assert decodes.count == len(outputs) - 2
    alone = [output for output in outputs if output.sequences == 6]
    assert {(output.shared_read, output.shared_saved) for output in alone} == {(128, 5 * 128)}
