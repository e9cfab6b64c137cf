"""Rotary position embedding of queries and keys, in place."""

from __future__ import annotations

import torch

from ._launch import check_dtype, check_float, check_rows, check_same_device, check_shape


def rotary_reference(q: torch.Tensor, k: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> None:
    cos, sin = cos_sin[positions].unsqueeze(1).chunk(2, dim=-1)  # [T, 1, D / 2]
    for x in (q, k):
        first, second = x.chunk(2, dim=-1)
        turned = first * cos - second * sin, second * cos + first * sin
        first.copy_(turned[0])
        second.copy_(turned[1])


def rotary(q: torch.Tensor, k: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> None:
    """Turn q [T, Hq, D] and k [T, Hkv, D] by the angles of their positions [T] (int64), in place.

    cos_sin [max_pos, D] float32 holds the cosines of D / 2 frequencies and then their sines. Element i is paired with
    element i + D / 2, as in Hugging Face's Llama. q and k may be strided views of a fused projection.
    """
    check_float("q", q)
    tokens, _, head_dim = q.shape
    check_shape("k", k, tokens, None, head_dim)
    check_dtype("k", k, q.dtype)
    check_rows("q", q)
    check_rows("k", k)
    if head_dim % 2:
        raise ValueError(f"head_dim is {head_dim}; rotary embedding needs an even one")
    check_shape("cos_sin", cos_sin, None, head_dim)
    check_dtype("cos_sin", cos_sin, torch.float32)
    check_rows("cos_sin", cos_sin)
    check_shape("positions", positions, tokens)
    check_dtype("positions", positions, torch.int64)
    check_same_device(q=q, k=k, cos_sin=cos_sin, positions=positions)
    rotary_reference(q, k, cos_sin, positions)
