"""The whole engine on the CPU: its greedy ids are those of transformers, whatever the batch, chunk and arrival."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine_parts import answer_all, make_engine
from greedy import VOCABULARY, greedy_answers, prompts, save
from millrace_worker.config import EngineConfig
from millrace_worker.engine.engine import Engine, _device
from millrace_worker.errors import ModelError
from millrace_worker.frames import AddSequence, SequenceParams

MAX_TOKENS = 12
#: Prompts; more than a step has room for in all settings but the first.
MOST = 40

#: max_num_seqs, max_num_batched_tokens, block_size, KV blocks, prefix caching, arrivals a step (0: all at once)
SETTINGS = [
    pytest.param((64, 2048, 16, 600, True, 0), id="all-at-once"),
    pytest.param((1, 2048, 16, 600, False, 0), id="one-by-one"),
    pytest.param((7, 13, 8, 600, True, 2), id="small-chunks-staggered"),
    pytest.param((16, 64, 4, 70, True, 3), id="preemption"),
]


@pytest.fixture(scope="module", params=["llama3-untied", "llama3-tied", "mistral", "qwen2", "qwen3"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    directory = save(request.param, tmp_path_factory.mktemp("models"))
    return directory, greedy_answers(directory, prompts(MOST), MAX_TOKENS, eos=None)


@pytest.mark.parametrize("overlap", [pytest.param(False, id="one"), pytest.param(True, id="two-in-flight")])
@pytest.mark.parametrize("setting", SETTINGS)
def test_greedy_ids_equal_those_of_transformers(
    case: tuple[Path, list[list[int]]], setting: tuple[int, int, int, int, bool, int], overlap: bool
) -> None:
    directory, wanted = case
    *sizes, a_step = setting
    engine = make_engine(directory, *sizes, overlap=overlap)
    greedy = SequenceParams(max_tokens=MAX_TOKENS, temperature=0.0)
    # One by one, prompts know nothing of each other: more of them would only take longer.
    count = 16 if setting[0] == 1 else MOST
    answers = answer_all(engine, prompts(MOST)[:count], [greedy] * count, a_step)
    assert [answers[i] for i in range(count)] == wanted[:count]
    if setting[3] == 70:
        assert engine.scheduler.num_preemptions > 0


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama3-untied", tmp_path_factory.mktemp("models"))


def test_seeded_samples_do_not_depend_on_the_batch(llama: Path) -> None:
    asked = prompts(16, longest=20)
    params = [
        SequenceParams(max_tokens=10, temperature=0.9, seed=i, top_k=(0, 20)[i % 2], top_p=(1.0, 0.9)[i // 2 % 2])
        for i in range(16)
    ]
    together = answer_all(make_engine(llama, 16, 512, 16, 300, True), asked, params)
    alone = answer_all(make_engine(llama, 1, 9, 8, 300, False), asked, params)
    assert together == alone
    assert len({tuple(a) for a in together.values()}) == 16


@pytest.mark.parametrize("overlap", [pytest.param(False, id="one"), pytest.param(True, id="two-in-flight")])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_batch_answers_are_the_same_beside_interactive_ones(
    llama: Path, overlap: bool, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = prompts(24)
    params = [SequenceParams(max_tokens=MAX_TOKENS, temperature=temperature, seed=i) for i in range(24)]
    undisturbed = answer_all(make_engine(llama, 24, 2048, 16, 600, True), asked, params)
    engine = make_engine(llama, 3, 64, 4, 160, True, overlap=overlap)
    # What a step may hold is else learnt from the clock.
    monkeypatch.setattr(engine._pace, "observe", lambda cost, seconds: None)
    engine._pace.allowance = engine.scheduler.allowance = 60
    answers: dict[int, list[int]] = {i: [] for i in range(24)}
    for i in range(8, 24):
        engine.add(AddSequence(i, asked[i], [], params[i], priority=1))
    late = list(range(8))
    steps = 0
    while engine.has_work or late:
        steps += 1
        if late and steps % 7 == 0:
            i = late.pop()
            engine.add(AddSequence(i, asked[i], [], params[i], priority=0))
        for seq_id, tokens in engine.step().tokens:
            answers[seq_id] += tokens
        engine.scheduler.check_integrity()
    assert engine.scheduler.num_preemptions >= 5
    assert answers == undisturbed


def test_a_resumed_sequence_goes_on_as_if_nothing_had_happened(llama: Path) -> None:
    prompt = prompts(1)[0]
    params = SequenceParams(max_tokens=20, temperature=1.0, seed=3)
    whole = answer_all(make_engine(llama, 4, 64, 16, 100, True), [prompt], [params])[0]
    engine = make_engine(llama, 4, 64, 16, 100, True)
    engine.add(AddSequence(0, prompt, whole[:7], params))
    engine.add(AddSequence(1, prompt, whole, params))
    tokens: list[int] = []
    finished = []
    while engine.has_work:
        output = engine.step()
        tokens += [t for seq_id, new in output.tokens for t in new if seq_id == 0]
        finished += output.finished
    assert whole[:7] + tokens == whole
    assert sorted(finished) == [(0, "length"), (1, "length")]


def test_stop_ids_end_a_sequence_and_min_tokens_bans_them(llama: Path) -> None:
    prompt = prompts(1)[0]
    engine = make_engine(llama, 4, 64, 16, 100, True)
    free = answer_all(engine, [prompt], [SequenceParams(max_tokens=8, temperature=0.0)])[0]
    stop = SequenceParams(max_tokens=8, temperature=0.0, stop_token_ids=(free[2],))
    assert answer_all(engine, [prompt], [stop])[0] == free[: free.index(free[2]) + 1]
    late = SequenceParams(max_tokens=8, temperature=0.0, stop_token_ids=(free[2],), min_tokens=6)
    assert free[2] not in answer_all(engine, [prompt], [late])[0][:6]


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message"),
    [
        ([5] * 190, 11, "190 tokens and the answer may have 11"),
        ([], 5, "no tokens"),
        ([5, VOCABULARY], 5, f"token id {VOCABULARY} is not in"),
    ],
)
def test_what_can_never_run_is_refused_and_the_rest_goes_on(
    llama: Path, prompt: list[int], max_tokens: int, message: str
) -> None:
    engine = make_engine(llama, 4, 64, 16, 100, True)
    engine.add(AddSequence(1, prompt, [], SequenceParams(max_tokens=max_tokens)))
    engine.add(AddSequence(2, [5, 6], [], SequenceParams(max_tokens=3)))
    refused, finished = [], []
    while engine.has_work:
        output = engine.step()
        refused += output.refused
        finished += output.finished
    assert [r.seq_id for r in refused] == [1]
    assert message in refused[0].message
    assert finished == [(2, "length")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_cache_memory_bytes": 1000}, "room for 0 tokens, less than the 2 that any job needs"),
        ({"kv_cache_memory_bytes": 10**15}, "the KV cache needs 93132"),
        ({"max_model_len": 4096}, "max_model_len=4096 is more than the 512 positions"),
        ({"max_model_len": 512, "kv_cache_memory_bytes": 100_000}, "less than max_model_len=512"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"model": "/no/such/dir"}, "/no/such/dir"),
    ],
)
def test_a_start_that_cannot_work_says_why(llama: Path, change: dict[str, object], message: str) -> None:
    settings = {"model": str(llama), "device": "cpu", **change}
    with pytest.raises(ModelError, match=message.replace("(", r"\(")):
        Engine(EngineConfig(**settings))


def test_a_numbered_gpu_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert _device("cuda:1") == torch.device("cuda:1")
    assert current == [torch.device("cuda:1")]
    with pytest.raises(ModelError, match="torch sees 2 CUDA devices"):
        _device("cuda:2")


def test_without_a_wish_the_length_is_what_fits(llama: Path) -> None:
    engine = Engine(EngineConfig(model=str(llama), device="cpu", kv_cache_memory_bytes=3 * 2 * 2 * 16 * 8 * 4 * 10))
    assert engine.ready.num_blocks == 10
    assert engine.ready.max_model_len == 160
