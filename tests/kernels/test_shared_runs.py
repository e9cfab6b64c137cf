"""Decode attention of sequences that share runs of blocks, against what each gives alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernel_cases import DEVICE, DTYPES, INTERPRETED, KERNELS, Paged, assert_as_good, by_mode, dense_attention, paged
from millrace_kernels import DecodePlan, PlanShape, SharedRun, paged_decode, plan_decode

pytestmark = [
    pytest.mark.skipif(not KERNELS, reason="the reference knows no plan"),
    pytest.mark.usefixtures("either_attention"),
]


def shared_case(
    prefixes: list[tuple[list[int], int, int]], contexts: list[int], kv_heads: int, head_dim: int, block: int,
    dtype: torch.dtype,
) -> tuple[Paged, list[SharedRun]]:  # fmt: skip
    """Contexts some of which read the blocks of the first of them: in each prefix (members, begin, end)."""
    case = paged(contexts, kv_heads, head_dim, block, dtype)
    tables, keys, values, runs = case.block_tables.clone(), list(case.keys), list(case.values), []
    for members, begin, end in prefixes:
        assert begin % block == end % block == 0
        first = members[0]
        for member in members[1:]:
            tables[member, begin // block : end // block] = tables[first, begin // block : end // block]
            keys[member], values[member] = keys[member].clone(), values[member].clone()
            keys[member][begin:end], values[member][begin:end] = keys[first][begin:end], values[first][begin:end]
        runs.append(SharedRun(np.array(members), begin, end))
    return Paged(case.kv, tables, case.context_lens, keys, values), runs


#: A plan has room for several programs a processor; those without a task take as long in the interpreter as others.
PROCESSORS = 8 if INTERPRETED else 132


def check(case: Paged, runs: list[SharedRun], heads: int, processors: int = PROCESSORS, spare_rows: int = 0) -> None:
    kv_heads, head_dim = case.kv.shape[2], case.kv.shape[-1]
    q = torch.randn(len(case.keys), heads, head_dim, device=DEVICE).to(case.kv.dtype)
    lens, scale = case.context_lens.cpu().numpy(), head_dim**-0.5
    shape = PlanShape(len(lens) + spare_rows, kv_heads, heads // kv_heads, processors, shared=True)
    arrays = plan_decode(lens, np.arange(len(lens)), shape, runs)
    assert len(arrays["shared"]) > 0
    full = {name: np.full(count, -1, dtype=np.int32) for name, count in shape.counts().items()}
    for name, array in arrays.items():
        full[name][: len(array)] = array
    plan = DecodePlan.of(shape, {name: torch.from_numpy(array).to(DEVICE) for name, array in full.items()})
    out = paged_decode(q, case.kv, case.block_tables, case.context_lens, scale, plan=plan)
    rows = []
    for kind in (torch.float64, q.dtype):
        parts = zip(q.split(1), case.keys, case.values, strict=True)
        rows.append(torch.cat([dense_attention(x.to(kind), k.to(kind), v.to(kind), scale) for x, k, v in parts]))
    assert_as_good(out, rows[0], rows[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", by_mode(gpu=[64, 80, 128, 256], interpreter=[8, 64], reference=[64]))
def test_one_group(head_dim: int, dtype: torch.dtype) -> None:
    check(*shared_case([([0, 1, 2], 0, 64)], [100, 65, 80, 30], 2, head_dim, 16, dtype), 8)


@pytest.mark.parametrize("size", by_mode(gpu=[1, 2, 3, 16, 33, 64], interpreter=[1, 5], reference=[2]))
@pytest.mark.parametrize("prefix", by_mode(gpu=[16, 256, 1024, 4096], interpreter=[16, 96], reference=[16]))
@pytest.mark.parametrize("block", by_mode(gpu=[16, 32], interpreter=[16], reference=[16]))
def test_groups_and_prefixes_of_any_size(size: int, prefix: int, block: int) -> None:
    prefix = -(-prefix // block) * block
    members = list(range(1, size + 1))
    contexts = [40, *(prefix + 1 + 7 * i % 50 for i in range(size))]
    check(*shared_case([(members, 0, prefix)], contexts, 2, 64, block, torch.float16), 8, spare_rows=3)


@pytest.mark.parametrize("heads", [2, 6, 14])
def test_heads_that_do_not_fill_a_tile(heads: int) -> None:
    members = [4, 0, 2, 3]
    check(*shared_case([(members, 0, 48)], [50, 20, 49, 90, 60], 2, 64, 16, torch.float16), heads)


@pytest.mark.parametrize("spare_rows", [pytest.param(0, id="merged apart"), pytest.param(16, id="merged in place")])
def test_nested_and_separate_groups(spare_rows: int) -> None:
    prefixes = [([0, 1, 2, 3, 4], 0, 64), ([1, 2], 64, 112), ([6, 7], 0, 32)]
    case, runs = shared_case(prefixes, [70, 200, 113, 66, 65, 30, 40, 100], 2, 64, 16, torch.float16)
    check(case, runs, 8, spare_rows=spare_rows)


@pytest.mark.parametrize("spare_rows", [pytest.param(0, id="merged apart"), pytest.param(16, id="merged in place")])
def test_a_cut_run(spare_rows: int) -> None:
    case, runs = shared_case([([0, 1], 0, 1024)], [1500, 1030], 2, 64, 16, torch.float16)
    check(case, runs, 8, processors=132, spare_rows=spare_rows)


@pytest.mark.gpu
@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_a_run_that_is_cut_where_no_large_block_begins(block: int) -> None:
    case, runs = shared_case([(list(range(40)), 0, 1152)], [1200] * 40, 2, 128, block, torch.bfloat16)
    check(case, runs, 8)


@pytest.mark.gpu
def test_a_full_batch() -> None:
    contexts = [2049 + i % 130 for i in range(1024)]
    prefixes = [(list(range(700)), 0, 1024), (list(range(100, 200)), 1024, 2048), (list(range(800, 900)), 0, 2048)]
    case, runs = shared_case(prefixes, contexts, 8, 128, 16, torch.bfloat16)
    check(case, runs, 32)
