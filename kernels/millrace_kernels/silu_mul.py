"""The gate of a SwiGLU feed-forward layer."""

from __future__ import annotations

import torch

from ._launch import check_float, check_rows, check_shape


def silu_mul_reference(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate.float()) * up.float()).to(gate_up.dtype)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(first half) * second half of each row of gate_up [T, 2 * I], in float32; returns [T, I] of its dtype."""
    check_float("gate_up", gate_up)
    check_shape("gate_up", gate_up, None, None)
    check_rows("gate_up", gate_up)
    if gate_up.shape[1] % 2:
        raise ValueError(f"gate_up has {gate_up.shape[1]} columns; it needs an even number, gates and then values")
    return silu_mul_reference(gate_up)
