"""The decoder against transformers, in float32 on the CPU, through a paged cache with shuffled blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from millrace_worker.models import Decoder, ForwardBatch, load_model
from tiny_models import make_model

BLOCK_SIZE = 16
NUM_BLOCKS = 32
#: Float32 sums of some dozen terms in another order, relative to logits of size 10.
TOLERANCE = {"rtol": 2e-5, "atol": 5e-5}


class PagedRun:
    """Sequences of one decoder over one cache, each growing by the tokens that a test feeds."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder
        # Nothing may read a slot that was not written.
        config = decoder.config
        shape = (NUM_BLOCKS, config.num_layers, 2, config.num_kv_heads, BLOCK_SIZE, config.head_dim)
        self.cache = torch.full(shape, float("nan"), dtype=decoder.dtype)
        self._free = torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(3)).tolist()
        self._blocks: dict[str, list[int]] = {}
        self._length: dict[str, int] = {}

    def step(
        self, chunks: list[tuple[str, list[int]]], decodes: int = 0, rows: list[int] | None = None
    ) -> torch.Tensor:
        """Logits of the wanted rows (default: all) after feeding each (sequence, tokens), the decodes first."""
        ids, positions, slots, tables, contexts, starts = [], [], [], [], [], [decodes]
        for i, (name, tokens) in enumerate(chunks):
            blocks, start = self._blocks.setdefault(name, []), self._length.get(name, 0)
            end = self._length[name] = start + len(tokens)
            while len(blocks) * BLOCK_SIZE < end:
                blocks.append(self._free.pop())
            ids += tokens
            positions += range(start, end)
            slots += [blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in range(start, end)]
            tables.append(blocks)
            contexts.append(end)
            if i >= decodes:
                starts.append(starts[-1] + len(tokens))
        width = max(len(t) for t in tables) + 1
        batch = ForwardBatch(
            input_ids=torch.tensor(ids),
            positions=torch.tensor(positions),
            slot_mapping=torch.tensor(slots),
            num_decodes=decodes,
            block_tables=torch.tensor([t + [0] * (width - len(t)) for t in tables], dtype=torch.int32),
            lines=torch.arange(len(tables), dtype=torch.int32),
            context_lens=torch.tensor(contexts, dtype=torch.int32),
            cu_seqlens_q=torch.tensor(starts, dtype=torch.int32),
            max_query_len=max((len(t) for _, t in chunks[decodes:]), default=0),
            logits_rows=torch.tensor(list(range(len(ids))) if rows is None else rows, dtype=torch.int64),
        )
        return self.decoder.forward(batch, self.cache)


@pytest.fixture
def run(saved: tuple[Path, PreTrainedModel]) -> PagedRun:
    decoder, _ = load_model(saved[0])
    return PagedRun(decoder)


def random_ids(count: int, seed: int) -> list[int]:
    return torch.randint(97, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def expected(saved: tuple[Path, PreTrainedModel], ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return saved[1](torch.tensor([ids])).logits[0]


def test_one_prefill_gives_the_logits_of_transformers(saved: tuple[Path, PreTrainedModel], run: PagedRun) -> None:
    ids = random_ids(75, seed=1)
    want = expected(saved, ids)
    assert want.abs().max() > 1  # the comparison is of something
    torch.testing.assert_close(run.step([("a", ids)]), want, **TOLERANCE)


def test_prefill_in_chunks_of_odd_sizes(saved: tuple[Path, PreTrainedModel], run: PagedRun) -> None:
    ids = random_ids(76, seed=2)
    want, start = expected(saved, ids), 0
    for size in (7, 1, 33, 16, 19):
        torch.testing.assert_close(
            run.step([("a", ids[start : start + size])]), want[start : start + size], **TOLERANCE
        )
        start += size
    assert start == len(ids)


def test_decode_step_by_step(saved: tuple[Path, PreTrainedModel], run: PagedRun) -> None:
    ids = random_ids(70, seed=3)
    want = expected(saved, ids)
    run.step([("a", ids[:13])])
    for i in range(13, 70):
        torch.testing.assert_close(run.step([("a", [ids[i]])], decodes=1), want[i : i + 1], **TOLERANCE)


def test_mixed_batch_of_decodes_and_prefills(saved: tuple[Path, PreTrainedModel], run: PagedRun) -> None:
    lengths = {"a": 40, "b": 18, "c": 52, "d": 35}
    ids = {name: random_ids(n, seed=n) for name, n in lengths.items()}
    want = {name: expected(saved, tokens) for name, tokens in ids.items()}
    run.step([("a", ids["a"][:39]), ("b", ids["b"][:17]), ("c", ids["c"][:20])])
    # Two decodes, the rest of a chunked prompt, a new prompt; logits of each one's last token.
    logits = run.step(
        [("a", ids["a"][39:]), ("b", ids["b"][17:]), ("c", ids["c"][20:]), ("d", ids["d"])],
        decodes=2,
        rows=[0, 1, 33, 68],
    )
    torch.testing.assert_close(logits, torch.stack([want[n][-1] for n in "abcd"]), **TOLERANCE)


def test_a_step_without_wanted_rows_still_fills_the_cache(saved: tuple[Path, PreTrainedModel], run: PagedRun) -> None:
    ids = random_ids(30, seed=5)
    assert run.step([("a", ids[:29])], rows=[]).shape == (0, 97)
    torch.testing.assert_close(run.step([("a", ids[29:])], decodes=1), expected(saved, ids)[29:], **TOLERANCE)


def test_fixed_shapes_with_room_for_more_change_nothing(saved: tuple[Path, PreTrainedModel], run: PagedRun) -> None:
    """One decode and a prompt of 5 where there is room for 4 decodes, 2 prefills and 10 tokens."""
    ids, prompt = random_ids(20, seed=6), random_ids(5, seed=7)
    run.step([("a", ids[:19])])
    blocks, block = run._blocks["a"], run._free.pop()
    slots = [blocks[1] * BLOCK_SIZE + 3, *(block * BLOCK_SIZE + i for i in range(5)), *[-1] * 4]
    nothing = [0, 0]
    batch = ForwardBatch(
        input_ids=torch.tensor([ids[19], *prompt, *[0] * 4]),
        positions=torch.tensor([19, *range(5), *[0] * 4]),
        slot_mapping=torch.tensor(slots),
        num_decodes=4,
        block_tables=torch.tensor([blocks, nothing, nothing, nothing, [block, 0], nothing], dtype=torch.int32),
        lines=torch.arange(6, dtype=torch.int32),
        context_lens=torch.tensor([20, 0, 0, 0, 5, 0], dtype=torch.int32),
        cu_seqlens_q=torch.tensor([1, 6, 6], dtype=torch.int32),
        max_query_len=10,
        logits_rows=torch.tensor([0, 5]),
    )
    wanted = torch.stack((expected(saved, ids)[19], expected(saved, prompt)[4]))
    torch.testing.assert_close(run.decoder.forward(batch, run.cache), wanted, **TOLERANCE)


def test_padding_of_the_decode_part_changes_nothing(saved: tuple[Path, PreTrainedModel], run: PagedRun) -> None:
    ids = random_ids(20, seed=6)
    run.step([("a", ids[:19])])
    before = run.cache.clone()
    blocks = run._blocks["a"]
    batch = ForwardBatch(
        input_ids=torch.tensor([ids[19], 0]),
        positions=torch.tensor([19, 0]),
        slot_mapping=torch.tensor([blocks[1] * BLOCK_SIZE + 3, -1]),
        num_decodes=2,
        block_tables=torch.tensor([blocks, [0, 0]], dtype=torch.int32),
        lines=torch.arange(2, dtype=torch.int32),
        context_lens=torch.tensor([20, 0], dtype=torch.int32),
        cu_seqlens_q=torch.tensor([0], dtype=torch.int32),
        max_query_len=0,
        logits_rows=torch.tensor([0]),
    )
    torch.testing.assert_close(run.decoder.forward(batch, run.cache), expected(saved, ids)[19:], **TOLERANCE)
    before[blocks[1], :, :, :, 3] = run.cache[blocks[1], :, :, :, 3]
    torch.testing.assert_close(run.cache, before, rtol=0, atol=0, equal_nan=True)


def test_a_window_is_exact_up_to_the_capped_context(tmp_path: Path) -> None:
    model = make_model("mistral-window")
    model.save_pretrained(tmp_path)
    decoder, config = load_model(tmp_path)
    assert config.max_context == 80
    ids = random_ids(80, seed=8)
    torch.testing.assert_close(PagedRun(decoder).step([("a", ids)]), expected((tmp_path, model), ids), **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_differs_by_rounding_alone(tmp_path: Path, dtype: torch.dtype) -> None:
    model = make_model("qwen3")
    model.save_pretrained(tmp_path)
    decoder, _ = load_model(tmp_path, dtype=dtype)
    ids = random_ids(40, seed=9)
    logits = PagedRun(decoder).step([("a", ids)])
    want = expected((tmp_path, model), ids)
    assert logits.dtype == dtype
    # Some dozen roundings of 2^-9 (bfloat16) one after another, on logits of standard deviation `want.std()`.
    assert (logits.float() - want).std() < 0.1 * want.std()
