"""The shipped model through the engine: 36 real prompts get the ids that transformers gives them."""

from __future__ import annotations

import pytest

from demo_prompts import demo_prompts, demo_tokenizer
from greedy import greedy_answers
from millrace_worker.config import EngineConfig
from millrace_worker.engine.engine import Engine
from millrace_worker.frames import AddSequence, SequenceParams
from millrace_worker.model_path import resolve_model
from millrace_worker.tokenizer import Tokenizer

MAX_TOKENS = 40


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return demo_tokenizer()


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    return demo_prompts(tokenizer, 36)


@pytest.fixture(scope="module")
def wanted(prompts: list[list[int]], tokenizer: Tokenizer) -> list[list[int]]:
    return greedy_answers(resolve_model("demo"), prompts, MAX_TOKENS, list(tokenizer.eos_token_ids))


@pytest.mark.parametrize(
    ("seqs", "budget", "a_step"),
    [
        pytest.param(256, 8192, 36, id="one-batch"),
        pytest.param(5, 37, 1, id="small-chunks-one-arrival-a-step"),
    ],
)
def test_greedy_ids_equal_those_of_transformers(
    prompts: list[list[int]], wanted: list[list[int]], tokenizer: Tokenizer, seqs: int, budget: int, a_step: int
) -> None:
    engine = Engine(EngineConfig(device="cpu", max_num_seqs=seqs, max_num_batched_tokens=budget))
    params = SequenceParams(max_tokens=MAX_TOKENS, temperature=0.0, stop_token_ids=tokenizer.eos_token_ids)
    answers: list[list[int]] = [[] for _ in prompts]
    cached = added = 0
    while added < len(prompts) or engine.has_work:
        for i in range(added, min(added + a_step, len(prompts))):
            engine.add(AddSequence(i, prompts[i], [], params))
        added = min(added + a_step, len(prompts))
        output = engine.step()
        cached += sum(started.cached for started in output.started)
        for seq_id, tokens in output.tokens:
            answers[seq_id] += tokens
    assert answers == wanted
    assert cached > 0.8 * sum(map(len, prompts))
