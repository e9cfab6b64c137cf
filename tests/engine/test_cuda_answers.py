"""What a CUDA device answers: the shipped model's greedy ids, logits as good as those of transformers, seeded draws."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from cuda_parts import EAGER, NEEDS_CUDA, answers_of, cuda_engine
from demo_prompts import demo_prompts, demo_tokenizer
from greedy import greedy_answers
from millrace_worker.engine.engine import Engine
from millrace_worker.frames import AddSequence, SequenceParams
from millrace_worker.model_path import resolve_model
from millrace_worker.models import Decoder, ForwardBatch, load_model
from millrace_worker.tokenizer import Tokenizer

pytestmark = NEEDS_CUDA

MAX_TOKENS = 40


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return demo_tokenizer()


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    return demo_prompts(tokenizer)


def engine_of(**settings: object) -> Engine:
    return cuda_engine(**{"max_num_seqs": 80, **settings})


@EAGER
def test_greedy_answers_of_the_shipped_model_are_those_of_the_cpu(
    prompts: list[list[int]], tokenizer: Tokenizer, eager: bool
) -> None:
    wanted = greedy_answers(resolve_model("demo"), prompts, MAX_TOKENS, list(tokenizer.eos_token_ids))
    params = SequenceParams(max_tokens=MAX_TOKENS, temperature=0.0, stop_token_ids=tokenizer.eos_token_ids)
    answers = answers_of(
        engine_of(enforce_eager=eager), [AddSequence(i, ids, [], params) for i, ids in enumerate(prompts)]
    )
    assert [answers[i] for i in range(len(prompts))] == wanted


def our_logits(decoder: Decoder, contexts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of all tokens but each context's last, as prompts; and of the last ones, as one-token steps."""
    config, block = decoder.config, 16
    pages = max(-(-len(ids) // block) for ids in contexts)
    shape = (len(contexts) * pages, config.num_layers, 2, config.num_kv_heads, block, config.head_dim)
    cache = torch.full(shape, float("nan"), dtype=decoder.dtype, device="cuda")
    tables = torch.randperm(len(contexts) * pages, device="cuda").view(-1, pages).int()

    def run(chunks: list[list[int]], starts: list[int], decodes: int) -> torch.Tensor:
        positions = [list(range(start, start + len(ids))) for start, ids in zip(starts, chunks, strict=True)]
        place = [
            tables[row, torch.tensor(where, device="cuda") // block] * block
            + torch.tensor(where, device="cuda") % block
            for row, where in enumerate(positions)
        ]
        ints = {"dtype": torch.int32, "device": "cuda"}
        ids, spots = ([x for part in parts for x in part] for parts in (chunks, positions))
        bounds = [0, *torch.tensor([len(part) for part in chunks]).cumsum(0).tolist()]
        return decoder.forward(
            ForwardBatch(
                input_ids=torch.tensor(ids, device="cuda"),
                positions=torch.tensor(spots, device="cuda"),
                slot_mapping=torch.cat(place).long(),
                num_decodes=decodes,
                block_tables=tables,
                lines=torch.arange(len(chunks), **ints),  # type: ignore[call-overload]
                context_lens=torch.tensor([where[-1] + 1 for where in positions], **ints),  # type: ignore[arg-type]
                cu_seqlens_q=torch.tensor(bounds[-1:] if decodes else bounds, **ints),  # type: ignore[arg-type]
                max_query_len=0 if decodes else max(map(len, chunks)),
                logits_rows=torch.arange(len(ids), device="cuda"),
            ),
            cache,
        )

    prompts = run([ids[:-1] for ids in contexts], [0] * len(contexts), 0)
    return prompts, run([ids[-1:] for ids in contexts], [len(ids) - 1 for ids in contexts], len(contexts))


@torch.inference_mode()
@pytest.mark.parametrize("count", [1, 5, 40])
def test_logits_in_bfloat16_err_at_most_twice_as_much_as_those_of_transformers(
    prompts: list[list[int]], count: int
) -> None:
    path, contexts = resolve_model("demo"), prompts[:count]
    ours = our_logits(load_model(path, dtype="bfloat16", device="cuda")[0], contexts)
    exact, theirs = (
        AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to("cuda").eval()
        for dtype in (torch.float32, torch.bfloat16)
    )
    references = []
    for model in (exact, theirs):
        rows = [model(torch.tensor([ids], device="cuda")).logits[0].float() for ids in contexts]
        references.append((torch.cat([logits[:-1] for logits in rows]), torch.stack([logits[-1] for logits in rows])))
    for part, got in enumerate(ours):
        wanted, plain = references[0][part], references[1][part]
        error, allowed = (got.float() - wanted).norm(), 2 * (plain - wanted).norm()
        assert torch.isfinite(got).all()
        assert error <= allowed, f"{float(error):.4f}, and transformers' is {float(allowed) / 2:.4f}"


def test_seeded_draws_depend_on_seed_and_position_alone(prompts: list[list[int]]) -> None:
    """Not on the batch, nor on graphs, nor on a restart in the middle of the answer."""
    params = [SequenceParams(max_tokens=MAX_TOKENS, temperature=1.5, seed=1000 + i) for i in range(32)]
    jobs = [AddSequence(i, prompts[i], [], params[i]) for i in range(32)]
    together = answers_of(engine_of(), jobs)
    assert len({tuple(answer) for answer in together.values()}) == 32
    few = engine_of(enforce_eager=True, max_num_seqs=3)
    assert answers_of(few, jobs) == together
    half = [AddSequence(i, prompts[i], together[i][: 7 + i % 20], params[i]) for i in range(32)]
    others = [AddSequence(100 + i, prompts[i], [], params[31 - i]) for i in range(20)]
    again = answers_of(engine_of(max_num_seqs=40), [*others, *half])
    assert {i: again[i] for i in range(32)} == together
