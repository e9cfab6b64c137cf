"""Penalties and biases in the engine: what plain loops over transformers' logits give, whatever the batch does."""

from __future__ import annotations

import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine_parts import answer_all, make_engine
from greedy import prompts, save
from millrace_worker.engine.penalties import Penalties
from millrace_worker.engine.sequence import Sequence
from millrace_worker.frames import AddSequence, SequenceParams

MAX_TOKENS = 14
PENALTIES: list[dict[str, Any]] = [
    {"presence_penalty": -1.5},
    {"frequency_penalty": 0.7},
    {"repetition_penalty": 1.3},
    {"presence_penalty": -0.5, "frequency_penalty": 1.5, "repetition_penalty": 0.8},
    {"logit_bias": ((3, 100.0), (5, -100.0))},
    {"logit_bias": ((7, 100.0), (9, 99.5)), "frequency_penalty": 0.7, "repetition_penalty": 1.3},
    {},
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama3-untied", tmp_path_factory.mktemp("models"))


@torch.inference_mode()
def penalised_answer(model: torch.nn.Module, prompt: list[int], params: SequenceParams) -> list[int]:
    """The definitions, token by token."""
    answer: list[int] = []
    for _ in range(params.max_tokens):
        logits = model(torch.tensor([prompt + answer])).logits[0, -1].tolist()
        counts = Counter(answer)
        for token, bias in params.logit_bias:
            logits[token] += bias
        for token in {*prompt, *answer}:
            factor = params.repetition_penalty
            logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
        for token, count in counts.items():
            logits[token] -= params.frequency_penalty * count + params.presence_penalty
        answer.append(max(range(len(logits)), key=logits.__getitem__))
    return answer


def some_params(count: int, **given: Any) -> list[SequenceParams]:
    return [
        SequenceParams(max_tokens=MAX_TOKENS, seed=i, **{**PENALTIES[i % len(PENALTIES)], **given})
        for i in range(count)
    ]


@pytest.mark.parametrize("overlap", [pytest.param(False, id="one"), pytest.param(True, id="two-in-flight")])
def test_greedy_answers_are_those_of_the_definitions(llama: Path, overlap: bool) -> None:
    asked, params = prompts(21, longest=20), some_params(21, temperature=0.0)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    wanted = {i: penalised_answer(model, asked[i], params[i]) for i in range(21)}
    assert answer_all(make_engine(llama, 8, 64, 16, 300, True, overlap=overlap), asked, params, 2) == wanted
    free = answer_all(
        make_engine(llama, 8, 64, 16, 300, True), asked, [SequenceParams(MAX_TOKENS, temperature=0.0)] * 21
    )
    assert {i % len(PENALTIES) for i in range(21) if wanted[i] != free[i]} == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("overlap", [pytest.param(False, id="one"), pytest.param(True, id="two-in-flight")])
def test_seeded_draws_do_not_depend_on_batch_and_preemption(llama: Path, overlap: bool) -> None:
    asked, params = prompts(20, longest=20), some_params(20, temperature=0.6, top_p=0.95)
    alone = answer_all(make_engine(llama, 1, 2048, 16, 300, False), asked, params)
    crowded = make_engine(llama, 16, 64, 4, 60, True, overlap=overlap)
    assert answer_all(crowded, asked, params, 3) == alone
    assert crowded.scheduler.num_preemptions > 0
    free = answer_all(
        make_engine(llama, 16, 2048, 16, 300, True),
        asked,
        [SequenceParams(MAX_TOKENS, temperature=0.6, top_p=0.95, seed=i) for i in range(20)],
    )
    assert alone != free


@pytest.mark.parametrize("done", [1, 7, 13])
def test_a_resumed_answer_is_penalised_for_what_it_had(llama: Path, done: int) -> None:
    prompt, params = prompts(1)[0], some_params(4, temperature=0.8)[3]
    whole = answer_all(make_engine(llama, 4, 64, 16, 100, True), [prompt], [params])[0]
    engine = make_engine(llama, 4, 64, 16, 100, True, overlap=True)
    # Another sequence leaves its counts in the row.
    answer_all(engine, [prompt], [params])
    engine.add(AddSequence(0, prompt, whole[:done], params))
    tokens: list[int] = []
    while engine.has_work:
        tokens += [token for _, new in engine.step().tokens for token in new]
    assert whole[:done] + tokens == whole


def test_without_penalties_nothing_is_allocated(llama: Path) -> None:
    engine = make_engine(llama, 4, 64, 16, 100, True)
    answer_all(engine, prompts(3), some_params(7)[6:] * 3)
    assert engine.runner.penalties.num_bytes == 0
    answer_all(engine, prompts(1), some_params(1))
    assert engine.runner.penalties.num_bytes == 4 * engine.model_config.vocab_size * 2


def test_a_bias_goes_with_its_sequence_and_keeps_tokens_out() -> None:
    """Rows are used again, tables come late, and ids outside the vocabulary are nobody's."""
    penalties = Penalties(2, torch.device("cpu"))
    plain = Sequence(1, [3], [], SequenceParams(max_tokens=9, presence_penalty=1.0))
    biased = Sequence(2, [3], [], SequenceParams(max_tokens=9, logit_bias=((8, -100.0), (2, 0.5), (9, 7.0))))
    later = Sequence(3, [3], [], SequenceParams(max_tokens=9, frequency_penalty=1.0))
    plain.row, biased.row, later.row = 0, 1, 1
    none = [0.0] * 9
    changed = [*none[:2], 0.5, *none[3:8], -100.0]
    assert penalties.apply(torch.zeros(1, 9), {0: plain}).logits.tolist() == [none]
    assert penalties.apply(torch.zeros(2, 9), {1: biased, 0: plain}).logits.tolist() == [changed, none]
    assert penalties.apply(torch.zeros(2, 9), {0: later, 1: plain}).logits.tolist() == [none, none]


def test_a_bias_takes_effect_with_stops_that_may_not_come_yet(llama: Path) -> None:
    params = SequenceParams(
        max_tokens=6, min_tokens=4, temperature=0.0, stop_token_ids=(7,), logit_bias=((7, 100.0), (9, 90.0))
    )
    assert answer_all(make_engine(llama, 4, 64, 16, 100, True), prompts(1), [params])[0] == [9, 9, 9, 9, 7]


def test_counts_follow_a_sequence_from_row_to_row_and_back() -> None:
    """Preempted and started again: what it generated elsewhere counts when it is back in its first row."""
    params = SequenceParams(max_tokens=9, presence_penalty=1.0, frequency_penalty=0.5)
    seq, penalties = Sequence(1, [3], [], params), Penalties(2, torch.device("cpu"))
    for start, (row, token) in enumerate([(0, 5), (1, 6), (0, 5), (0, 7)]):
        # In its third start it stays where it is.
        seq.row, seq.num_preempted = row, min(start, 2)
        penalised = penalties.apply(torch.zeros(1, 9), {0: seq})
        counts = [seq.tokens[1:].count(t) for t in range(9)]
        assert penalised.logits[0].tolist() == [-(0.5 * n + 1.0) if n else 0.0 for n in counts]
        penalties.count(penalised, torch.tensor([token]))
        seq.tokens.append(token)


def test_a_sequence_that_has_ended_is_not_kept() -> None:
    penalties = Penalties(2, torch.device("cpu"))
    seq = Sequence(1, [3], [], SequenceParams(max_tokens=9, presence_penalty=1.0))
    seq.row = 0
    penalties.apply(torch.zeros(1, 9), {0: seq})
    ended = weakref.ref(seq)
    del seq
    assert ended() is None
