"""Every kernel compiles for Hopper, without a GPU: the interpreter takes much that the compiler refuses."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from kernel_cases import KERNELS, paged
from millrace_kernels import (
    DecodePlan,
    PlanShape,
    SharedRun,
    _hopper_attention,
    apply_penalties,
    count_tokens,
    embed,
    linear,
    linear_parts,
    logprobs,
    norm_gated_linear,
    norm_linear,
    paged_decode,
    paged_prefill,
    plan_decode,
    rms_norm,
    rms_norm_residual,
    rotary_store,
    sample,
    silu_mul,
)

pytestmark = pytest.mark.skipif(KERNELS, reason="the kernels run in this process")

#: What the tests replace in the modules that import them by name.
_ON_HOPPER: dict[str, Any] = {
    "use_triton": lambda tensor: True,
    "is_hopper": lambda tensor: True,
    "multiprocessors": lambda tensor: 132,
    "dependent_launch": lambda tensor: {"PDL": True, "launch_pdl": True},
}


class _Hopper:
    """As much of a driver as compiling asks for."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that an op would have launched. Nothing runs, so results are what memory held."""
    names: list[str] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        names.append(self.fn.__name__)
        return run(self, *args, grid=(1,), warmup=True, **kwargs)

    monkeypatch.setattr(JITFunction, "run", compile_only)
    for name, module in list(sys.modules.items()):
        if name.startswith("millrace_kernels"):
            for what, replacement in _ON_HOPPER.items():
                if hasattr(module, what):
                    monkeypatch.setattr(module, what, replacement)
    monkeypatch.setattr(triton.runtime.driver, "_active", _Hopper())
    return names


DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)


@DTYPES
@pytest.mark.parametrize("rows", [4, 40])
def test_attention(rows: int, dtype: torch.dtype, compiled: list[str]) -> None:
    heads, kv_heads, dim = 8, 2, 128
    case = paged([600] * rows, kv_heads, dim, 16, dtype)
    q = torch.zeros(rows, heads, dim, dtype=dtype)
    shape = PlanShape(rows, kv_heads, heads // kv_heads, 132, shared=True)
    arrays = plan_decode(case.context_lens.numpy(), np.arange(rows), shape, [SharedRun(np.arange(rows), 0, 512)])
    plan = DecodePlan.of(shape, {name: torch.from_numpy(array) for name, array in arrays.items()})
    paged_decode(q, case.kv, case.block_tables, case.context_lens, 0.1, plan=plan)
    for tokens in (4, 20, 3000):
        bounds, lens = torch.tensor([0, tokens], dtype=torch.int32), torch.tensor([tokens], dtype=torch.int32)
        q = torch.zeros(tokens, heads, dim, dtype=dtype)
        paged_prefill(q, case.kv, case.block_tables[:1], bounds, lens, tokens, 0.1)
        paged_prefill(q, case.kv, case.block_tables, bounds, lens, tokens, 0.1, lines=lens)
    some = {"_merge_kernel"} if rows < 16 else set()
    some |= {"_prefill_kernel"} if dtype != torch.float32 else set()
    assert set(compiled) == {"_paged_decode_kernel", "_shared_run_kernel", "_paged_prefill_kernel"} | some


@pytest.mark.parametrize(("dim", "block", "dtype"), [(128, 16, torch.bfloat16), (64, 32, torch.float16)])
def test_attention_for_hopper(
    dim: int, block: int, dtype: torch.dtype, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hopper_attention, "enabled", True)
    rows, heads, kv_heads = 40, 8, 2
    case = paged([600] * rows, kv_heads, dim, block, dtype)
    q = torch.zeros(3000, heads, dim, dtype=dtype)
    shape = PlanShape(rows, kv_heads, heads // kv_heads, 132, shared=True)
    arrays = plan_decode(case.context_lens.numpy(), np.arange(rows), shape, [SharedRun(np.arange(rows), 0, 512)])
    plan = DecodePlan.of(shape, {name: torch.from_numpy(array) for name, array in arrays.items()})
    paged_decode(q[:rows], case.kv, case.block_tables, case.context_lens, 0.1, plan=plan)
    for tokens in (8, 3000):
        bounds, lens = torch.tensor([0, tokens], dtype=torch.int32), torch.tensor([tokens], dtype=torch.int32)
        paged_prefill(q[:tokens], case.kv, case.block_tables[:1], bounds, lens, tokens, 0.1)
        paged_prefill(q[:tokens], case.kv, case.block_tables, bounds, lens, tokens, 0.1, lines=lens)
    counters = torch.zeros(2 * 132, dtype=torch.int32)
    paged_prefill(q, case.kv, case.block_tables, bounds, lens, 3000, 0.1, lines=lens, arrivals=counters)
    decode = ["_shared_run_kernel", "_paged_decode_kernel"]
    assert compiled == [*decode, *["_paged_prefill_kernel"] * 2, *["_prefill_kernel"] * 3]


@DTYPES
@pytest.mark.parametrize("rows", [1, 5, 60])
@pytest.mark.parametrize(("columns", "k"), [(4096, 4096), (96, 200)])
def test_products(columns: int, k: int, rows: int, dtype: torch.dtype, compiled: list[str]) -> None:
    x, weight, bias = torch.zeros(rows, k, dtype=dtype), torch.zeros(columns, k, dtype=dtype), torch.zeros(columns)
    norm, bias = torch.ones(k, dtype=dtype), bias.to(dtype)
    for biased in (None, bias):
        linear(x, weight, biased)
        norm_gated_linear(x, x, norm, weight, biased, 1e-6)
    norm_linear(linear_parts(x, weight) if columns == k else x, x, norm, weight, None, 1e-6)
    assert {"_rms_norm_kernel"} < set(compiled) or rows == 1
    assert ("_gemv_kernel" in compiled) == (rows == 1)
    assert ("_skinny_kernel" in compiled) == (rows > 1 and dtype != torch.float32)


@pytest.mark.parametrize(
    ("dtype", "rows", "columns", "k", "kernel"),
    [
        (torch.bfloat16, 1030, 3840, 1024, "_gated_linear_kernel"),
        (torch.float16, 4096, 1152, 64, "_gated_linear_kernel"),
        (torch.bfloat16, 1023, 3840, 1024, "_silu_mul_kernel"),
        (torch.bfloat16, 1030, 3904, 1024, "_silu_mul_kernel"),
        (torch.float32, 1030, 3840, 1024, "_silu_mul_kernel"),
    ],
    ids=str,
)
def test_gates_of_many_rows(
    dtype: torch.dtype, rows: int, columns: int, k: int, kernel: str, compiled: list[str]
) -> None:
    x, norm, weight = torch.zeros(rows, k, dtype=dtype), torch.ones(k, dtype=dtype), torch.zeros(2 * columns, k)
    result, _ = norm_gated_linear(x, None, norm, weight.to(dtype), None, 1e-6)
    assert result.shape == (rows, columns)
    assert compiled == ["_rms_norm_kernel", kernel]
    norm_gated_linear(x, None, norm, weight.to(dtype), torch.zeros(2 * columns, dtype=dtype), 1e-6)
    assert compiled[2:] == ["_rms_norm_kernel", "_silu_mul_kernel"]


@DTYPES
def test_the_rest(dtype: torch.dtype, compiled: list[str]) -> None:
    x = torch.zeros(6, 8, 128, dtype=dtype)
    rms_norm(x, torch.ones(128, dtype=dtype), 1e-6)
    rms_norm_residual(torch.zeros(2, 6, 1024), x.flatten(1), torch.ones(1024, dtype=dtype), 1e-6)
    silu_mul(x.flatten(1))
    ids = torch.zeros(6, dtype=torch.int64)
    embed(ids, ids, torch.zeros(9, 1024, dtype=dtype))
    counts = torch.zeros(6, 1024, dtype=torch.int16)
    biases = torch.zeros(6, 1000, dtype=torch.int32), torch.zeros(6, 1000)
    apply_penalties(x.flatten(1), ids, counts, ids, *(torch.ones(6),) * 3, *biases)
    assert {"_penalties_kernel", "_biases_kernel"} <= set(compiled)
    count_tokens(counts, ids, ids, ids)
    for top in (0, 5):
        logprobs(x.flatten(1), ids, ids, top)
    case = paged([20], 2, 128, 16, dtype)
    slots, cos_sin = torch.zeros(6, dtype=torch.int64), torch.zeros(9, 128)
    for norms in ((), (torch.ones(128, dtype=dtype),) * 2):
        rotary_store(x[:, :4], x[:, 4:6], x[:, 6:], case.kv, slots, cos_sin, slots, *norms)
    floats, ints = torch.ones(6), torch.zeros(6, dtype=torch.int64)
    for any_filter in (False, True):
        sample(x.flatten(1), floats, ints.int(), floats, floats, ints, ints, any_filter=any_filter)
    assert {"_rms_norm_kernel", "_silu_mul_kernel", "_rotary_store_kernel", "_draw_kernel"} <= set(compiled)
