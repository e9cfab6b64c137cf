"""The engine on a CUDA device: Triton kernels and CUDA graphs give the ids that transformers gives on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from cuda_parts import EAGER, NEEDS_CUDA, answers_of, cuda_engine
from greedy import greedy_answers, prompts, save
from millrace_worker.engine import shared_runs
from millrace_worker.frames import AddSequence, SequenceParams

pytestmark = NEEDS_CUDA

MAX_TOKENS = 12


@pytest.mark.parametrize("name", ["llama3-tied", "mistral", "qwen2", "qwen3"])
def test_graphs_and_eager_steps_give_the_ids_of_transformers(name: str, tmp_path: Path) -> None:
    directory = save(name, tmp_path)
    asked = prompts(128)
    wanted = greedy_answers(directory, asked, MAX_TOKENS, eos=None)
    for eager, seqs, budget in ((True, 24, 96), (False, 24, 96), (False, 7, 96), (False, 80, 700), (False, 80, 90)):
        engine = cuda_engine(
            directory, max_num_seqs=seqs, max_num_batched_tokens=budget, max_model_len=200, enforce_eager=eager
        )
        greedy = SequenceParams(max_tokens=MAX_TOKENS, temperature=0.0)
        found = answers_of(engine, [AddSequence(i, prompt, [], greedy) for i, prompt in enumerate(asked)])
        answers = [found[i] for i in range(len(asked))]
        assert answers == wanted, f"enforce_eager={eager}, max_num_seqs={seqs}, max_num_batched_tokens={budget}"


@EAGER
def test_rows_change_hands_while_a_step_is_in_flight(eager: bool, tmp_path: Path) -> None:
    directory = save("llama3-tied", tmp_path)
    asked = prompts(32)
    wanted = greedy_answers(directory, asked, MAX_TOKENS, eos=None)
    engine = cuda_engine(directory, max_num_seqs=4, max_num_batched_tokens=96, max_model_len=200, enforce_eager=eager)
    greedy = SequenceParams(max_tokens=MAX_TOKENS, temperature=0.0)
    for i in range(16, 32):
        engine.add(AddSequence(i, asked[i], [], greedy, priority=1))
    answers: list[list[int]] = [[] for _ in asked]
    late = list(range(16))
    handed_over = steps = 0
    while engine.has_work or late:
        steps += 1
        before = engine.scheduler.num_preemptions
        in_flight = engine._launched is not None
        if late and steps % 5 == 0:
            i = late.pop()
            engine.add(AddSequence(i, asked[i], [], greedy, priority=0))
        for seq_id, tokens in engine.step().tokens:
            answers[seq_id] += tokens
        handed_over += in_flight and engine.scheduler.num_preemptions > before
    assert handed_over >= 4
    assert answers == wanted


@EAGER
def test_shared_prefixes_are_read_once_and_change_nothing(
    eager: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two groups behind prefixes of their own, and sequences without one, which come and go beside each other."""
    monkeypatch.setattr(shared_runs, "_LEAST_SAVED_BYTES", 1)
    monkeypatch.setattr(shared_runs, "_LEAST_TOKENS", 64)
    directory = save("llama3-tied", tmp_path)
    heads = [[(7 * i + g) % 97 for i in range(128)] for g in range(2)]
    asked = [[*heads[i % 2], *tail] if i % 5 else tail for i, tail in enumerate(prompts(120, longest=40))]
    wanted = greedy_answers(directory, asked, MAX_TOKENS, eos=None)
    engine = cuda_engine(
        directory, max_num_seqs=100, max_num_batched_tokens=512, max_model_len=300, enforce_eager=eager
    )
    for i, prompt in enumerate(asked):
        engine.add(AddSequence(i, prompt, [], SequenceParams(max_tokens=MAX_TOKENS, temperature=0.0)))
    answers: list[list[int]] = [[] for _ in asked]
    outputs = []
    while engine.has_work:
        outputs.append(engine.step())
        for seq_id, tokens in outputs[-1].tokens:
            answers[seq_id] += tokens
    shared = [output for output in outputs if output.shared_read]
    assert len(shared) > 5
    # Nothing but the two heads is long enough, and at least four sequences are behind each that is read once.
    for output in shared:
        assert output.shared_read in (128, 256)
        assert output.shared_saved >= 3 * output.shared_read
        assert output.shared_saved % 128 == 0
    assert answers == wanted


@EAGER
def test_penalties_and_log_probabilities_are_those_of_the_cpu(eager: bool, tmp_path: Path) -> None:
    """On the CPU the references run, which the other tests hold against transformers."""
    directory = save("llama3-tied", tmp_path)
    asked = prompts(48)
    found = []
    for device in ("cpu", "cuda"):
        engine = cuda_engine(
            directory, max_num_seqs=16, max_num_batched_tokens=96, max_model_len=200, enforce_eager=eager, device=device
        )
        for i, prompt in enumerate(asked):
            params = SequenceParams(
                max_tokens=MAX_TOKENS,
                temperature=0.0,
                presence_penalty=(0.0, 1.5, -1.0)[i % 3],
                frequency_penalty=(0.0, 0.5)[i % 2],
                repetition_penalty=(1.0, 1.3, 1.0, 0.8)[i % 4],
                logprobs=(None, 0, 3, 20)[i // 2 % 4],
            )
            engine.add(AddSequence(i, prompt, [], params))
        answers: list[list[int]] = [[] for _ in asked]
        logprobs: list[list[float]] = [[] for _ in asked]
        top_ids: list[list[int]] = [[] for _ in asked]
        while engine.has_work:
            output = engine.step()
            for seq_id, tokens in output.tokens:
                answers[seq_id] += tokens
            for seq_id, new in output.logprobs.items():
                logprobs[seq_id] += [one.logprob for one in new]
                logprobs[seq_id] += [value for one in new for value in one.top]
                top_ids[seq_id] += [one.top_ids[0] for one in new if one.top_ids]
        found.append((answers, logprobs, top_ids))
    (answers, logprobs, top_ids), on_cuda = found
    assert (answers, top_ids) == (on_cuda[0], on_cuda[2])
    for mine, theirs in zip(logprobs, on_cuda[1], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
