from __future__ import annotations

import pytest
import torch

from kernel_cases import DEVICE, DTYPES, Paged, assert_as_good, by_mode, dense_attention, paged
from millrace_kernels import paged_decode, paged_prefill, prefill_arrivals

pytestmark = pytest.mark.usefixtures("either_attention")

HEADS = [(4, 4), (8, 2), (16, 2), (7, 1)]  # groups of 1, 4, 8, 7
#: (query tokens, context): whole prompts, chunks that begin within a block, single tokens, none.
PAIRS = by_mode(
    gpu=[(1, 1), (1, 1328), (5, 18), (129, 463), (0, 40), (200, 200), (33, 1000), (700, 700), (16, 16)],
    interpreter=[(1, 33), (5, 18), (0, 20), (37, 90)],
    reference=[(1, 1), (1, 133), (5, 18), (0, 40), (64, 64), (33, 100), (129, 200)],
)


def expect(case: Paged, q: torch.Tensor, lengths: list[int], scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    rows = []
    for dtype in (torch.float64, q.dtype):
        parts = zip(q.split(lengths), case.keys, case.values, strict=True)
        rows.append(torch.cat([dense_attention(x.to(dtype), k.to(dtype), v.to(dtype), scale) for x, k, v in parts]))
    return rows[0], rows[1]


def offsets(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths], device=DEVICE).cumsum(0).int()


def check(
    pairs: list[tuple[int, int]], heads: int, kv_heads: int, head_dim: int, block: int, dtype: torch.dtype
) -> None:
    lengths, contexts = [n for n, _ in pairs], [n for _, n in pairs]
    case = paged(contexts, kv_heads, head_dim, block, dtype)
    q = torch.randn(sum(lengths), heads, head_dim, device=DEVICE).to(dtype)
    scale, out = head_dim**-0.5, torch.full_like(q, float("nan"))
    tables, lens = case.block_tables, case.context_lens
    result = paged_prefill(q, case.kv, tables, offsets(lengths), lens, max(lengths), scale, out=out)
    assert result is out
    assert_as_good(out, *expect(case, q, lengths, scale))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [8, 64, 80, 128, 256])
def test_equals_dense_attention(head_dim: int, dtype: torch.dtype) -> None:
    check(PAIRS, 8, 2, head_dim, 16, dtype)


@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_equals_dense_attention_for_any_block_size(block: int) -> None:
    check(PAIRS, 8, 2, 64, block, torch.float16)


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_packs_the_heads_of_a_group(heads: int, kv_heads: int) -> None:
    check([(20, 50), (3, 3)], heads, kv_heads, 64, 16, torch.float16)


@pytest.mark.parametrize("longest", [1, 4, 16, 150])
def test_every_tile_size(longest: int) -> None:
    """Sizes are chosen by the longest query; many short sequences share none of their tiles."""
    check([(longest, longest + 21), (1, 7), (0, 3), (longest, longest), (1, 64)], 8, 2, 64, 16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chunks_give_what_the_whole_prompt_gives(dtype: torch.dtype) -> None:
    """Chunks begin within a block; each sees what the whole prompt's rows see."""
    case = paged([100], 2, 64, 16, dtype)
    q = torch.randn(100, 8, 64, device=DEVICE).to(dtype)
    parts = []
    for begin, end in ((0, 7), (7, 41), (41, 100)):
        lens = torch.tensor([end], dtype=torch.int32, device=DEVICE)
        cu = offsets([end - begin])
        parts.append(paged_prefill(q[begin:end], case.kv, case.block_tables, cu, lens, end - begin, 0.125))
    assert_as_good(torch.cat(parts), *expect(case, q, [100], 0.125))


def test_one_token_each_equals_decode() -> None:
    case = paged([33, 1, 90], 2, 64, 16, torch.float32)
    q = torch.randn(3, 8, 64, device=DEVICE)
    prefill = paged_prefill(q, case.kv, case.block_tables, offsets([1, 1, 1]), case.context_lens, 1, 0.125)
    decode = paged_decode(q, case.kv, case.block_tables, case.context_lens, 0.125)
    torch.testing.assert_close(prefill, decode, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_takes_queries_out_of_a_fused_projection(dtype: torch.dtype) -> None:
    case = paged([30, 40], 2, 64, 16, dtype)
    fused = torch.randn(35, 8 + 4, 64, device=DEVICE).to(dtype)
    q = fused[:, :8]
    result = paged_prefill(q, case.kv, case.block_tables, offsets([30, 5]), case.context_lens, 30, 0.125)
    assert_as_good(result, *expect(case, q, [30, 5], 0.125))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_no_sequence_stay(dtype: torch.dtype) -> None:
    """Decodes lie before the prefills of a step, padding lies behind them, and so do sequences without tokens."""
    lengths, contexts = [5, 21, 0, 0], [18, 21, 0, 0]
    case = paged(contexts, 2, 64, 16, dtype)
    for before, behind in ((3, 4), (70, 0), (0, 40)):
        q = torch.full((before + 26 + behind, 8, 64), float("nan"), dtype=dtype, device=DEVICE)
        own = slice(before, before + 26)
        q[own] = torch.randn(26, 8, 64, device=DEVICE)
        out = torch.full_like(q, 7.0)
        bounds = offsets(lengths) + before
        # The longest that there may be, as a captured step has it.
        paged_prefill(q, case.kv, case.block_tables, bounds, case.context_lens, len(q), 0.125, out=out)
        assert_as_good(out[own], *expect(case, q[own], lengths, 0.125))
        assert (torch.cat((out[:before], out[before + 26 :])) == 7.0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lines_say_whose_blocks_are_where(dtype: torch.dtype) -> None:
    case = paged([33, 70, 5], 2, 64, 16, dtype)
    q, lines = (
        torch.randn(40, 8, 64, device=DEVICE).to(dtype),
        torch.tensor([4, 0, 2], dtype=torch.int32, device=DEVICE),
    )
    tables = torch.full((6, case.block_tables.shape[1]), -(2**31), dtype=torch.int32, device=DEVICE)
    tables[lines.long()] = case.block_tables
    lengths = [5, 30, 5]
    result = paged_prefill(q, case.kv, tables, offsets(lengths), case.context_lens, 30, 0.125, lines=lines)
    assert_as_good(result, *expect(case, q, lengths, 0.125))


def test_no_tokens_give_no_rows() -> None:
    case = paged([5], 2, 64, 16, torch.float32)
    q = torch.empty(0, 4, 64, device=DEVICE)
    result = paged_prefill(q, case.kv, case.block_tables, offsets([0]), case.context_lens, 0, 0.125)
    assert result.shape == (0, 4, 64)


#: (query tokens, context) of sequences, with fewer tiles of query rows than multiprocessors, or just more.
FEW = by_mode(
    gpu=[
        [(64, 8256)],
        [(1, 5000)],
        [(33, 5000), (0, 0), (1, 100), (64, 3000)],
        [(17, 2049)] * 4,
        [(40, 900 + n) for n in range(0, 640, 64)],
        [(544, 9000)],
        [(20, 50 + 300 * n) for n in range(40)],
        [(2, 300 + 30 * n) for n in range(128)],
        [(2, 300 + 30 * n) for n in range(129)],
    ],
    interpreter=[[(5, 40), (0, 0), (2, 20)]],
    reference=[[(5, 300)], [(5, 40), (0, 0), (2, 20)]],
)


@pytest.mark.parametrize("pairs", FEW, ids=lambda pairs: f"{len(pairs)}x{pairs[0][0]}")
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(32, 8, 128), (8, 2, 64), (4, 4, 64), (7, 1, 128)])
def test_contexts_of_few_queries_are_read_in_parts(
    pairs: list[tuple[int, int]], heads: int, kv_heads: int, head_dim: int
) -> None:
    lengths, contexts = [n for n, _ in pairs], [n for _, n in pairs]
    dtype = by_mode(gpu=torch.bfloat16, interpreter=torch.float16, reference=torch.bfloat16)
    case = paged(contexts, kv_heads, head_dim, 16, dtype)
    q = torch.randn(3 + sum(lengths) + 50, heads, head_dim, device=DEVICE).to(dtype)
    own, bounds, scale = slice(3, 3 + sum(lengths)), offsets(lengths) + 3, head_dim**-0.5
    arrivals = prefill_arrivals(q.device)
    for turn in range(3):
        q[own] *= turn + 1
        out = torch.full_like(q, float("nan"))
        paged_prefill(
            q, case.kv, case.block_tables, bounds, case.context_lens, len(q), scale, out=out, arrivals=arrivals
        )
        assert_as_good(out[own], *expect(case, q[own], lengths, scale))
        assert out[:3].isnan().all()
        assert out[own.stop :].isnan().all()
        assert not arrivals.any()


@pytest.mark.gpu
def test_long_prompts_and_many_sequences() -> None:
    check([(4096, 4096), (512, 9000), (1, 5000)], 32, 8, 128, 16, torch.bfloat16)
    check([(300, 4096), (512, 900), (1, 5000)], 32, 8, 128, 16, torch.bfloat16)
    check([(20, 50 + n) for n in range(300)], 32, 8, 128, 16, torch.bfloat16)


def test_wrong_arguments_are_named() -> None:
    case = paged([5, 6], 2, 64, 16, torch.float32)
    q, cu = torch.randn(4, 4, 64, device=DEVICE), offsets([2, 2])
    with pytest.raises(ValueError, match="cu_seqlens_q has shape"):
        paged_prefill(q, case.kv, case.block_tables, cu[:2], case.context_lens, 2, 1.0)
    with pytest.raises(ValueError, match="max_query_len is 0"):
        paged_prefill(q, case.kv, case.block_tables, cu, case.context_lens, 0, 1.0)
    with pytest.raises(TypeError, match=r"arrivals is torch\.float32"):
        paged_prefill(q, case.kv, case.block_tables, cu, case.context_lens, 2, 1.0, arrivals=torch.zeros(9).to(DEVICE))
    apart = torch.zeros(20, dtype=torch.int32, device=DEVICE)[::2]
    with pytest.raises(ValueError, match="arrivals must be contiguous"):
        paged_prefill(q, case.kv, case.block_tables, cu, case.context_lens, 2, 1.0, arrivals=apart)
    with pytest.raises(TypeError, match=r"block_tables is torch\.int64"):
        paged_prefill(q, case.kv, case.block_tables.long(), cu, case.context_lens, 2, 1.0)
