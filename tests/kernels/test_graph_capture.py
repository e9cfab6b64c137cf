"""No op reads a tensor on the host: all of a decode step's can be captured in a CUDA graph and replayed on new data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernel_cases import DEVICE, paged
from millrace_kernels import (
    DecodePlan,
    PlanShape,
    SharedRun,
    linear,
    norm_gated_linear,
    paged_decode,
    paged_prefill,
    plan_decode,
    prefill_arrivals,
    rms_norm,
    rms_norm_residual,
    rotary_store,
    sample,
    silu_mul,
)

pytestmark = pytest.mark.gpu

SEQS, HEADS, KV_HEADS, DIM = 4, 8, 2, 64


def test_a_captured_step_follows_its_inputs() -> None:
    case = paged([100, 33, 600, 17], KV_HEADS, DIM, 16, torch.bfloat16)
    fused = torch.randn(SEQS, HEADS + 2 * KV_HEADS, DIM, device=DEVICE).bfloat16()
    slots = torch.full((SEQS,), -1, device=DEVICE)
    lens, positions = case.context_lens.clone(), case.context_lens.long() - 1
    weight = torch.randn(DIM, device=DEVICE).bfloat16()
    weights = torch.randn(128, HEADS * DIM // 2, device=DEVICE).bfloat16()
    cos_sin = torch.randn(1000, DIM, device=DEVICE)
    cu = torch.arange(SEQS + 1, device=DEVICE, dtype=torch.int32)
    temperature = torch.tensor([0.0, 1.0, 0.7, 1.0], device=DEVICE)
    top_k = torch.tensor([0, 5, 0, 0], device=DEVICE, dtype=torch.int32)
    top_p, min_p = torch.tensor([1.0, 1.0, 0.9, 1.0], device=DEVICE), torch.full((SEQS,), 0.05, device=DEVICE)

    shape = PlanShape(SEQS, KV_HEADS, HEADS // KV_HEADS, 16)
    tensors = {name: torch.empty(n, dtype=torch.int32, device=DEVICE) for name, n in shape.counts().items()}
    plan = DecodePlan.of(shape, tensors)

    def put_plan(contexts: list[int]) -> None:
        arrays = plan_decode(np.array(contexts), np.arange(SEQS), shape)
        for name, array in arrays.items():
            tensors[name].fill_(-1)[: len(array)] = torch.from_numpy(array).to(DEVICE)

    put_plan([100, 33, 600, 17])

    def step() -> tuple[torch.Tensor, ...]:
        work = fused.clone()
        q, k, v = work.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
        rotary_store(q, k, v, case.kv, slots, cos_sin, positions)
        whole = paged_decode(rms_norm(q, weight, 1e-6), case.kv, case.block_tables, lens, 0.125, plan=plan)
        split = paged_decode(q, case.kv, case.block_tables, lens, 0.125, plan=plan)
        prompt = paged_prefill(q, case.kv, case.block_tables, cu, lens, 1, 0.125)
        normed, _ = rms_norm_residual(whole.flatten(1), split.flatten(1), weight.repeat(HEADS), 1e-6)
        gated = silu_mul(normed)
        row, summed = norm_gated_linear(gated[:1], gated[1:2], weight.repeat(HEADS // 2), weights, None, 1e-6)
        few = linear(gated, weights)
        ids = sample(gated, temperature, top_k, top_p, min_p, positions, positions)
        return whole, split, prompt, normed, gated, row, summed, few, ids

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()

    fused.copy_(torch.randn_like(fused))
    lens.copy_(torch.tensor([7, 0, 599, 1], device=DEVICE))
    put_plan([7, 0, 599, 1])
    cu.copy_(torch.tensor([0, 1, 1, 2, 3], device=DEVICE))
    positions.copy_(torch.tensor([6, 500, 598, 0], device=DEVICE))
    for result in captured:
        result.fill_(-1 if result.dtype == torch.int64 else float("nan"))
    graph.replay()
    expected = step()
    for name, got, wanted in zip(
        ("whole", "split", "prompt", "normed", "gated", "row", "summed", "few", "ids"), captured, expected, strict=True
    ):
        rows = 3 if name == "prompt" else len(got)  # the last row belongs to no sequence now
        assert torch.equal(got[:rows], wanted[:rows]), name
    assert torch.equal(captured[0][1], torch.zeros_like(captured[0][1]))


def test_captured_parts_are_merged_by_the_last_task_of_a_row() -> None:
    """Layer after layer, replay after replay, with runs that sequences share and without."""
    rows, layers = 40, 4
    case = paged([300 + 97 * i for i in range(rows)], KV_HEADS, DIM, 16, torch.bfloat16)
    tables = case.block_tables.clone()
    tables[5:13, :16] = tables[5, :16]
    queries = [torch.randn(rows, HEADS, DIM, device=DEVICE).bfloat16() for _ in range(layers)]
    shape = PlanShape(rows, KV_HEADS, HEADS // KV_HEADS, 132, shared=True)
    tensors = {name: torch.empty(n, dtype=torch.int32, device=DEVICE) for name, n in shape.counts().items()}
    plan = DecodePlan.of(shape, tensors)
    assert plan.arrivals is not None

    def put_plan(lens: list[int], runs: list[SharedRun]) -> None:
        arrays = plan_decode(np.array(lens), np.arange(len(lens)), shape, runs)
        assert (arrays["tasks"].reshape(-1, 8)[:, 6] > 1).any()
        for name, array in arrays.items():
            tensors[name].fill_(-1)[: len(array)] = torch.from_numpy(array).to(DEVICE)

    def step() -> list[torch.Tensor]:
        found, q = [], queries[0]
        for layer in range(layers):
            q = paged_decode(q, case.kv, tables, case.context_lens, 0.125, plan=plan) + queries[layer]
            found.append(q)
        return found

    put_plan([300] * rows, [])
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    run = SharedRun(np.arange(5, 13), 0, 256)
    lens = case.context_lens.tolist()
    for number, runs in ((rows, []), (rows, [run]), (14, [run]), (rows, [])):
        put_plan(lens[:number], runs)
        for _ in range(3):
            graph.replay()
        torch.cuda.synchronize()
        assert not plan.arrivals.any()
        q = queries[0]
        for layer in range(layers):
            # Without a plan: read alone, by a launch of the same queries.
            alone = paged_decode(q[:number], case.kv, tables[:number], case.context_lens[:number], 0.125)
            torch.testing.assert_close(captured[layer][:number], alone + queries[layer][:number], atol=2e-2, rtol=2e-2)
            q = captured[layer]


def test_a_captured_prefill_follows_its_bounds() -> None:
    """Sequences may be longer and shorter than those of the capture, and all behind the last one may have no tokens."""
    case = paged([90, 200, 41, 64], KV_HEADS, 128, 16, torch.bfloat16)
    q, out = (torch.randn(128, HEADS, 128, device=DEVICE).bfloat16() for _ in range(2))
    bounds = torch.tensor([0, 64, 104, 128, 128], device=DEVICE, dtype=torch.int32)

    def step() -> torch.Tensor:
        out.fill_(7.0)
        return paged_prefill(q, case.kv, case.block_tables, bounds, case.context_lens, 64, 0.125, out=out)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for ends in ([3, 20, 84, 90, 90], [0, 64, 64, 64, 128], [5, 5, 69, 69, 70]):
        q.copy_(torch.randn_like(q))
        bounds.copy_(torch.tensor(ends, device=DEVICE))
        out.fill_(float("nan"))
        graph.replay()
        got = out.clone()
        assert torch.equal(got, step())
        assert (torch.cat((got[: ends[0]], got[ends[-1] :])) == 7.0).all()
        assert not (got[ends[0] : ends[-1]] == 7.0).all()


def test_captured_parts_of_a_prefill_follow_its_bounds() -> None:
    """Layer after layer, replay after replay, with parts and without."""
    case = paged([5000, 200, 3000, 9000], KV_HEADS, 128, 16, torch.bfloat16)
    queries, out = (torch.randn(200, HEADS, 128, device=DEVICE).bfloat16() for _ in range(2))
    bounds = torch.tensor([0, 64, 104, 128, 200], device=DEVICE, dtype=torch.int32)
    arrivals = prefill_arrivals(queries.device)

    def step() -> torch.Tensor:
        q = queries
        for _ in range(3):
            out.fill_(7.0)
            paged_prefill(
                q, case.kv, case.block_tables, bounds, case.context_lens, 200, 0.125, out=out, arrivals=arrivals
            )
            q = queries + out
        return q

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for ends in (
        [3, 20, 84, 90, 90],
        [0, 64, 64, 64, 128],
        [5, 5, 69, 69, 70],
        [0, 0, 0, 0, 0],
        [0, 50, 100, 150, 200],
    ):
        queries.copy_(torch.randn_like(queries))
        bounds.copy_(torch.tensor(ends, device=DEVICE))
        for _ in range(3):
            graph.replay()
        assert not arrivals.any()
        own = slice(ends[0], ends[-1])
        # Parts are added in their order, not in that of their arrival.
        assert torch.equal(captured[own], step()[own])
        assert (torch.cat((out[: ends[0]], out[ends[-1] :])) == 7.0).all()
