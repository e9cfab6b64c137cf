"""Log-probabilities are those of transformers' logits, before everything that sampling changes in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine_parts import make_engine
from greedy import prompts, save
from millrace_worker.engine.engine import Engine
from millrace_worker.frames import AddSequence, Likely, SequenceParams

MAX_TOKENS = 32


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama3-untied", tmp_path_factory.mktemp("models"))


def run(engine: Engine, asked: list[AddSequence]) -> tuple[dict[int, list[int]], dict[int, list[Likely]]]:
    """Ids and log-probabilities by sequence, each with those of its tokens."""
    for new in asked:
        engine.add(new)
    tokens: dict[int, list[int]] = {new.seq_id: [] for new in asked}
    logprobs: dict[int, list[Likely]] = {new.seq_id: [] for new in asked}
    while engine.has_work:
        output = engine.step()
        for seq_id, ids in output.tokens:
            tokens[seq_id] += ids
        assert set(output.logprobs) <= {seq_id for seq_id, _ in output.tokens}
        for seq_id, new in output.logprobs.items():
            logprobs[seq_id] += new
    return tokens, logprobs


def params_of(i: int) -> SequenceParams:
    """Some of everything that sampling does; every fourth asks for nothing, and the others for 0 to 20."""
    return SequenceParams(
        max_tokens=MAX_TOKENS,
        temperature=(0.0, 0.8)[i % 2],
        top_k=(0, 5)[i // 2 % 2],
        seed=i,
        stop_token_ids=(7, 8, 9, 20, 21) if i % 3 == 0 else (),
        min_tokens=4 if i % 3 == 0 else 0,
        frequency_penalty=(0.0, 1.0, 0.0)[i % 3],
        logprobs=None if i % 4 == 3 else (0, 3, 20)[i % 3],
    )


@pytest.mark.parametrize("overlap", [pytest.param(False, id="one"), pytest.param(True, id="two-in-flight")])
def test_equal_log_softmax_in_any_batch(llama: Path, overlap: bool) -> None:
    asked = [AddSequence(i, prompt, [], params_of(i)) for i, prompt in enumerate(prompts(24, longest=20))]
    engine = make_engine(llama, 16, 64, 4, 50, True, overlap=overlap)
    tokens, logprobs = run(engine, asked)
    assert engine.scheduler.num_preemptions > 0
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    for new in asked:
        answer, found = tokens[new.seq_id], logprobs[new.seq_id]
        if new.params.logprobs is None:
            assert found == []
            continue
        with torch.inference_mode():
            logits = model(torch.tensor([new.prompt + answer])).logits[0, len(new.prompt) - 1 : -1]
        exact, n = logits.double().log_softmax(-1), new.params.logprobs
        wanted = exact.gather(-1, torch.tensor(answer)[:, None])[:, 0]
        got = torch.tensor([one.logprob for one in found], dtype=torch.float64)
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-5)
        values, ids = exact.sort(descending=True, stable=True)
        assert [one.top_ids for one in found] == ids[:, :n].tolist()
        got = torch.tensor([one.top for one in found], dtype=torch.float64).view(len(answer), n)
        torch.testing.assert_close(got, values[:, :n], atol=2e-5, rtol=1e-5)
        assert (got.exp().sum(-1) <= 1 + 1e-5).all()


def test_asking_changes_no_token(llama: Path) -> None:
    asked = [AddSequence(i, prompt, [], params_of(i)) for i, prompt in enumerate(prompts(12, longest=20))]
    nothing = [
        AddSequence(new.seq_id, new.prompt, [], SequenceParams(**{**_fields(new.params), "logprobs": None}))
        for new in asked
    ]
    engine = make_engine(llama, 16, 512, 16, 300, True)
    assert run(engine, asked)[0] == run(engine, nothing)[0]


def _fields(params: SequenceParams) -> dict[str, object]:
    return {name: getattr(params, name) for name in params.__struct_fields__}
