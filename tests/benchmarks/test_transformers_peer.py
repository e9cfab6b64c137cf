"""transformers' adapter: static batches, the wanted tokens alone, and an end when the time is over."""

from __future__ import annotations

import json
from typing import Any

import pytest

from millrace_bench.peers import transformers_peer
from millrace_bench.peers.protocol import Task
from millrace_bench.peers.transformers_peer import TransformersEngine
from millrace_bench.workloads import Job
from tiny_models import CONFIGS

JOBS = [Job([5 + i] * (1 + i % 7), 1 + i % 4) for i in range(40)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    directory = tmp_path_factory.mktemp("tiny")
    # Its own end-of-sequence ids must end nothing.
    config = {**CONFIGS["qwen3"].to_dict(), "eos_token_id": list(range(97))}
    (directory / "config.json").write_text(json.dumps(config))
    return TransformersEngine(Task(str(directory), "dummy", 0.6, 1, {}, [], []))


def test_it_counts_what_was_wanted_of_each_answer(engine: TransformersEngine) -> None:
    run = engine.run(JOBS, None)
    assert run.output_tokens == sum(job.max_tokens for job in JOBS)
    assert run.prompt_tokens == sum(len(job.prompt) for job in JOBS)
    # Two batches, each as long as its longest answer.
    assert run.figures == {"steps": 8}


def test_answers_begin_in_one_column_behind_padding(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    generate = engine._model.generate

    def spy(ids: Any, **given: Any) -> Any:
        seen.append({"ids": ids.tolist(), "mask": given["attention_mask"].tolist()})
        return generate(ids, **given)

    monkeypatch.setattr(engine._model, "generate", spy)
    engine.run([Job([7, 8, 9], 2), Job([6], 1)], None)
    assert seen == [{"ids": [[7, 8, 9], [0, 0, 6]], "mask": [[1, 1, 1], [0, 0, 1]]}]


def test_past_the_limit_the_running_batch_ends_and_none_is_begun(engine: TransformersEngine) -> None:
    long = [Job([5, 6], 200) for _ in range(transformers_peer.BATCH + 1)]
    run = engine.run(long, 0.05)
    assert 0 < run.output_tokens < 200 * transformers_peer.BATCH
    assert run.prompt_tokens == 2 * transformers_peer.BATCH
    assert run.output_tokens == run.figures["steps"] * transformers_peer.BATCH
