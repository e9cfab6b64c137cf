from __future__ import annotations

import numpy as np
import pytest
import torch

from kernel_cases import DEVICE, DTYPES, INTERPRETED, Paged, assert_as_good, by_mode, dense_attention, paged
from millrace_kernels import DecodePlan, PlanShape, paged_decode, plan_decode

HEADS = [(4, 4), (8, 2), (16, 2), (6, 2), (32, 1)]  # groups of 1, 4, 8, 3, 32
CONTEXTS = by_mode(
    gpu=[1, 15, 16, 17, 0, 63, 64, 65, 500, 4097],
    interpreter=[1, 16, 0, 65, 97],
    reference=[1, 15, 16, 17, 0, 65, 300],
)

CUT_CONTEXTS = [0, 1, 257, 512, 700] if INTERPRETED else [*CONTEXTS, 255, 256, 257, 700]


def expect(case: Paged, q: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(float64, plain in q's dtype)."""
    rows = []
    for dtype in (torch.float64, q.dtype):
        parts = []
        for seq, (k, v) in enumerate(zip(case.keys, case.values, strict=True)):
            query = q[seq : seq + 1].to(dtype)
            parts.append(dense_attention(query, k.to(dtype), v.to(dtype), scale) if len(k) else torch.zeros_like(query))
        rows.append(torch.cat(parts))
    return rows[0], rows[1]


def plan_of(case: Paged, heads: int, processors: int, spare_rows: int = 0) -> DecodePlan:
    """More processors, more parts. With spare rows there is room for more than is planned, as in a captured step."""
    lens, kv_heads = case.context_lens.cpu().numpy(), case.kv.shape[2]
    shape = PlanShape(len(lens) + spare_rows, kv_heads, heads // kv_heads, processors)
    arrays = plan_decode(lens, np.arange(len(lens)), shape)
    if spare_rows:
        full = {name: np.full(count, -1, dtype=np.int32) for name, count in shape.counts().items()}
        for name, array in arrays.items():
            full[name][: len(array)] = array
        arrays = full
    return DecodePlan.of(shape, {name: torch.from_numpy(array).to(DEVICE) for name, array in arrays.items()})


def check(case: Paged, heads: int, *, processors: int | None = None, spare_rows: int = 0) -> None:
    head_dim = case.kv.shape[-1]
    q = torch.randn(len(case.keys), heads, head_dim, device=DEVICE).to(case.kv.dtype)
    scale = head_dim**-0.5
    plan = None if processors is None else plan_of(case, heads, processors, spare_rows)
    out = torch.full_like(q, float("nan"))
    result = paged_decode(q, case.kv, case.block_tables, case.context_lens, scale, plan=plan, out=out)
    assert result is out
    assert_as_good(out, *expect(case, q, scale))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [8, 64, 80, 128, 256])
def test_equals_dense_attention(head_dim: int, dtype: torch.dtype) -> None:
    check(paged(CONTEXTS, 2, head_dim, 16, dtype), 8)


@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
def test_equals_dense_attention_for_any_block_size(block_size: int) -> None:
    check(paged(CONTEXTS, 2, 64, block_size, torch.float16), 8)


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_packs_the_heads_of_a_group(heads: int, kv_heads: int) -> None:
    check(paged([70, 3], kv_heads, 64, 16, torch.float16), heads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("processors", by_mode(gpu=[1, 2, 3, 16, 132], interpreter=[1, 8], reference=[2]))
@pytest.mark.parametrize("spare_rows", [pytest.param(0, id="merged apart"), pytest.param(16, id="merged in place")])
def test_parts_give_what_one_pass_gives(spare_rows: int, processors: int, dtype: torch.dtype) -> None:
    """Contexts end before, in and at the edge of a part."""
    contexts = CUT_CONTEXTS[:15]
    check(paged(contexts, 2, 64, 16, dtype), 8, processors=processors, spare_rows=spare_rows)


def test_arrivals_are_left_as_they_were() -> None:
    case = paged(CUT_CONTEXTS, 2, 64, 16, torch.float16)
    plan = plan_of(case, 8, 8, spare_rows=16)
    q = torch.randn(len(case.keys), 8, 64, device=DEVICE).half()
    assert plan.arrivals is not None
    for _ in range(3):
        result = paged_decode(q, case.kv, case.block_tables, case.context_lens, 0.125, plan=plan)
        assert_as_good(result, *expect(case, q, 0.125))
        assert not plan.arrivals.any()


@pytest.mark.parametrize("rows", by_mode(gpu=[1, 5, 40], interpreter=[3, 20], reference=[3]))
def test_rooms_of_a_plan_that_are_not_used_do_nothing(rows: int) -> None:
    check(paged([300, 17, 90], 2, 64, 16, torch.float16), 8, processors=8, spare_rows=rows)


@pytest.mark.parametrize("processors", [1, 4])
def test_takes_queries_out_of_a_fused_projection(processors: int) -> None:
    case = paged([33, 300], 2, 64, 16, torch.float32)
    fused = torch.randn(2, 8 + 4, 64, device=DEVICE)
    q, plan = fused[:, :8], plan_of(case, 8, processors)
    result = paged_decode(q, case.kv, case.block_tables, case.context_lens, 0.125, plan=plan)
    assert_as_good(result, *expect(case, q, 0.125))


def test_large_scores_do_not_overflow() -> None:
    case = paged([40, 90], 2, 64, 16, torch.float32)
    q = torch.randn(2, 4, 64, device=DEVICE)
    result = paged_decode(q, case.kv, case.block_tables, case.context_lens, 40.0)
    assert_as_good(result, *expect(case, q, 40.0))


def test_empty_contexts_alone_give_zeros() -> None:
    case = paged([0, 0], 2, 64, 16, torch.float32)
    q = torch.randn(2, 4, 64, device=DEVICE)
    result = paged_decode(q, case.kv, case.block_tables, case.context_lens, 0.125)
    assert torch.equal(result, torch.zeros_like(q))


def test_lines_say_whose_blocks_are_where() -> None:
    case = paged([33, 70, 5], 2, 64, 16, torch.float32)
    q, lines = torch.randn(3, 4, 64, device=DEVICE), torch.tensor([4, 0, 2], dtype=torch.int32, device=DEVICE)
    tables = torch.full((6, case.block_tables.shape[1]), -(2**31), dtype=torch.int32, device=DEVICE)
    tables[lines.long()] = case.block_tables
    result = paged_decode(q, case.kv, tables, case.context_lens, 0.125, lines=lines)
    assert_as_good(result, *expect(case, q, 0.125))


def test_no_sequences_give_no_rows() -> None:
    case = paged([5], 2, 64, 16, torch.float32)
    q = torch.empty(0, 4, 64, device=DEVICE)
    assert paged_decode(q, case.kv, case.block_tables[:0], case.context_lens[:0], 0.125).shape == (0, 4, 64)


@pytest.mark.gpu
@pytest.mark.parametrize("seqs", [1, 6, 30, 60, 200])
def test_many_long_sequences(seqs: int) -> None:
    check(paged(torch.randint(1, 3000, (seqs,)).tolist(), 8, 128, 16, torch.bfloat16), 32)


@pytest.mark.gpu
def test_one_very_long_sequence() -> None:
    check(paged([20000], 8, 128, 16, torch.bfloat16), 32)


def test_wrong_arguments_are_named() -> None:
    case = paged([5, 6], 2, 64, 16, torch.float32)
    q, tables, lens = torch.randn(2, 4, 64, device=DEVICE), case.block_tables, case.context_lens
    with pytest.raises(TypeError, match=r"q is torch\.float16"):
        paged_decode(q.half(), case.kv, tables, lens, 1.0)
    with pytest.raises(ValueError, match="3 heads, which 2 KV heads do not divide"):
        paged_decode(q[:, :3], case.kv, tables, lens, 1.0)
    with pytest.raises(TypeError, match=r"context_lens is torch\.int64"):
        paged_decode(q, case.kv, tables, lens.long(), 1.0)
    with pytest.raises(ValueError, match="block_tables has shape"):
        paged_decode(q, case.kv, tables[:1], lens, 1.0)
    with pytest.raises(ValueError, match="kv has strides"):
        paged_decode(q, case.kv.transpose(2, 3), tables, lens, 1.0)
