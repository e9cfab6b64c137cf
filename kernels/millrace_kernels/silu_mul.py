"""The gate of a SwiGLU feed-forward layer."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._dependent import await_inputs, dependent_launch
from ._launch import check_float, check_rows, check_shape, use_triton


def silu_mul_reference(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate.float()) * up.float()).to(gate_up.dtype)


@triton.jit
def _silu_mul_kernel(gate_up_ptr, out_ptr, row_stride, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr):
    await_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    live = column < COLUMNS
    gate = tl.load(gate_up_ptr + row * row_stride + column, mask=live, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * row_stride + COLUMNS + column, mask=live, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * COLUMNS + column, gate / (1.0 + tl.exp(-gate)) * up, mask=live)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(first half) * second half of each row of gate_up [T, 2 * I], in float32; returns [T, I] of its dtype."""
    check_float("gate_up", gate_up)
    check_shape("gate_up", gate_up, None, None)
    check_rows("gate_up", gate_up)
    if gate_up.shape[1] % 2:
        raise ValueError(f"gate_up has {gate_up.shape[1]} columns; it needs an even number, gates and then values")
    if not use_triton(gate_up):
        return silu_mul_reference(gate_up)
    rows, columns = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, columns)
    if out.numel() == 0:
        return out
    width = min(1024, triton.next_power_of_2(columns))
    grid = (rows, triton.cdiv(columns, width))
    _silu_mul_kernel[grid](
        gate_up, out, gate_up.stride(0), COLUMNS=columns, WIDTH=width, num_warps=4, **dependent_launch(gate_up)
    )
    return out
