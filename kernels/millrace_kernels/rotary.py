"""Rotary position embedding of queries and keys, in place."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._launch import check_dtype, check_float, check_rows, check_same_device, check_shape, use_triton


def rotary_reference(q: torch.Tensor, k: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> None:
    cos, sin = cos_sin[positions].unsqueeze(1).chunk(2, dim=-1)  # [T, 1, D / 2]
    for x in (q, k):
        first, second = x.chunk(2, dim=-1)
        turned = first * cos - second * sin, second * cos + first * sin
        first.copy_(turned[0])
        second.copy_(turned[1])


@triton.jit
def _turn(
    x_ptr, head_stride, cos, sin, HEADS: tl.constexpr, HEADS_PAD: tl.constexpr, HALF: tl.constexpr, PAD: tl.constexpr
):
    """Turn all heads of one token, [HEADS, 2 * HALF]."""
    head, dim = tl.arange(0, HEADS_PAD)[:, None], tl.arange(0, PAD)[None, :]
    live = (head < HEADS) & (dim < HALF)
    place = x_ptr + head * head_stride + dim
    first = tl.load(place, mask=live, other=0.0).to(tl.float32)
    second = tl.load(place + HALF, mask=live, other=0.0).to(tl.float32)
    tl.store(place, first * cos - second * sin, mask=live)
    tl.store(place + HALF, second * cos + first * sin, mask=live)


@triton.jit
def _rotary_kernel(
    q_ptr,
    k_ptr,
    cos_sin_ptr,
    positions_ptr,
    q_token,
    q_head,
    k_token,
    k_head,
    cos_sin_row,
    Q_HEADS: tl.constexpr,
    Q_PAD: tl.constexpr,
    K_HEADS: tl.constexpr,
    K_PAD: tl.constexpr,
    HALF: tl.constexpr,
    PAD: tl.constexpr,
):
    """One program a token."""
    token = tl.program_id(0).to(tl.int64)
    dim = tl.arange(0, PAD)[None, :]
    row = cos_sin_ptr + tl.load(positions_ptr + token) * cos_sin_row
    cos = tl.load(row + dim, mask=dim < HALF, other=0.0)
    sin = tl.load(row + HALF + dim, mask=dim < HALF, other=0.0)
    _turn(q_ptr + token * q_token, q_head, cos, sin, Q_HEADS, Q_PAD, HALF, PAD)
    _turn(k_ptr + token * k_token, k_head, cos, sin, K_HEADS, K_PAD, HALF, PAD)


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
    if not use_triton(q):
        return rotary_reference(q, k, cos_sin, positions)
    if tokens == 0:
        return None
    q_pad, pad = triton.next_power_of_2(q.shape[1]), triton.next_power_of_2(head_dim // 2)
    _rotary_kernel[(tokens,)](
        q,
        k,
        cos_sin,
        positions,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        cos_sin.stride(0),
        Q_HEADS=q.shape[1],
        Q_PAD=q_pad,
        K_HEADS=k.shape[1],
        K_PAD=triton.next_power_of_2(k.shape[1]),
        HALF=head_dim // 2,
        PAD=pad,
        num_warps=max(1, min(8, q_pad * pad // 256)),
    )
    return None
