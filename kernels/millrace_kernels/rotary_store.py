"""What lies between the fused projection and attention, in one launch: norms of heads, rotary embedding, KV write."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._dependent import await_inputs, dependent_launch
from ._launch import check_dtype, check_kv, check_rows, check_same_device, check_shape, use_triton
from .rms_norm import rms_norm_reference


def rotary_store_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kv: torch.Tensor,
    slot_mapping: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 0.0,
) -> None:
    if q_norm is not None and k_norm is not None:
        q.copy_(rms_norm_reference(q, q_norm, eps))
        k = rms_norm_reference(k, k_norm, eps)
    else:
        k = k.clone()
    cos, sin = cos_sin[positions].unsqueeze(1).chunk(2, dim=-1)  # [T, 1, D / 2]
    for x in (q, k):
        first, second = x.chunk(2, dim=-1)
        turned = first * cos - second * sin, second * cos + first * sin
        first.copy_(turned[0])
        second.copy_(turned[1])
    kept = slot_mapping >= 0
    if not bool(kept.all()):
        k, v, slot_mapping = k[kept], v[kept], slot_mapping[kept]
    blocks, offsets = slot_mapping // kv.shape[3], slot_mapping % kv.shape[3]
    kv[:, 0][blocks, :, offsets] = k  # [T, Hkv, D]
    kv[:, 1][blocks, :, offsets] = v


@triton.jit
def _turned(
    x_ptr,
    norm_ptr,
    head_stride,
    cos,
    sin,
    eps,
    HEADS: tl.constexpr,
    HEADS_PAD: tl.constexpr,
    HALF: tl.constexpr,
    PAD: tl.constexpr,
    NORM: tl.constexpr,
):
    """Both halves of all heads of one token, normalised and turned: two tiles [HEADS_PAD, PAD] in float32."""
    head, dim = tl.arange(0, HEADS_PAD)[:, None], tl.arange(0, PAD)[None, :]
    live = (head < HEADS) & (dim < HALF)
    place = x_ptr + head * head_stride + dim
    first = tl.load(place, mask=live, other=0.0).to(tl.float32)
    second = tl.load(place + HALF, mask=live, other=0.0).to(tl.float32)
    if NORM:
        square = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
        scale = tl.rsqrt(square / (2 * HALF) + eps)[:, None]
        low = tl.load(norm_ptr + dim, mask=dim < HALF, other=0.0).to(tl.float32)
        high = tl.load(norm_ptr + HALF + dim, mask=dim < HALF, other=0.0).to(tl.float32)
        # Rounded as if the norm had been an op of its own.
        first = (first * scale * low).to(x_ptr.dtype.element_ty).to(tl.float32)
        second = (second * scale * high).to(x_ptr.dtype.element_ty).to(tl.float32)
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _rotary_store_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    kv_ptr,
    slots_ptr,
    cos_sin_ptr,
    positions_ptr,
    q_norm_ptr,
    k_norm_ptr,
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    kv_block,
    cos_sin_row,
    eps,
    Q_HEADS: tl.constexpr,
    Q_PAD: tl.constexpr,
    K_HEADS: tl.constexpr,
    K_PAD: tl.constexpr,
    HALF: tl.constexpr,
    PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a token. Keys go to the cache alone, queries stay where they are."""
    await_inputs(PDL)
    token = tl.program_id(0).to(tl.int64)
    dim = tl.arange(0, PAD)[None, :]
    row = cos_sin_ptr + tl.load(positions_ptr + token) * cos_sin_row
    cos = tl.load(row + dim, mask=dim < HALF, other=0.0)
    sin = tl.load(row + HALF + dim, mask=dim < HALF, other=0.0)
    head = tl.arange(0, Q_PAD)[:, None]
    live = (head < Q_HEADS) & (dim < HALF)
    q_ptr += token * q_token
    first, second = _turned(q_ptr, q_norm_ptr, q_head, cos, sin, eps, Q_HEADS, Q_PAD, HALF, PAD, NORM)
    tl.store(q_ptr + head * q_head + dim, first, mask=live)
    tl.store(q_ptr + head * q_head + HALF + dim, second, mask=live)

    slot = tl.load(slots_ptr + token)
    if slot < 0:
        return
    head = tl.arange(0, K_PAD)[:, None]
    live = (head < K_HEADS) & (dim < HALF)
    first, second = _turned(k_ptr + token * k_token, k_norm_ptr, k_head, cos, sin, eps, K_HEADS, K_PAD, HALF, PAD, NORM)
    offset = slot // BLOCK_SIZE * kv_block + slot % BLOCK_SIZE * (2 * HALF)
    keys = kv_ptr + offset + head * (BLOCK_SIZE * 2 * HALF) + dim
    tl.store(keys, first, mask=live)
    tl.store(keys + HALF, second, mask=live)
    values = v_ptr + token * v_token + head * v_head + dim
    below = keys + K_HEADS * BLOCK_SIZE * 2 * HALF
    tl.store(below, tl.load(values, mask=live), mask=live)
    tl.store(below + HALF, tl.load(values + HALF, mask=live), mask=live)


def rotary_store(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kv: torch.Tensor,
    slot_mapping: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Turn q [T, Hq, D] in place, and put turned k and v [T, Hkv, D] at slot_mapping [T] of one layer's cache view.

    Before it, heads are normalised as by rms_norm with q_norm and k_norm [D], if they are given. cos_sin [P, D] in
    float32 holds the cosines and then the sines of each position; positions [T] is int64. A slot (int64) is
    block * block_size + offset; a negative one is padding and is skipped; no two tokens may name one slot. k is left as
    it was. q, k and v may be strided views of a fused projection.
    """
    check_kv(kv)
    tokens, _, head_dim = q.shape
    if head_dim % 2:
        raise ValueError(f"head_dim is {head_dim}; rotary embedding needs an even one")
    check_shape("q", q, tokens, None, head_dim)
    for name, tensor in (("k", k), ("v", v)):
        check_shape(name, tensor, tokens, kv.shape[2], kv.shape[4])
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_dtype(name, tensor, kv.dtype)
        check_rows(name, tensor)
    check_shape("cos_sin", cos_sin, None, head_dim)
    check_dtype("cos_sin", cos_sin, torch.float32)
    check_rows("cos_sin", cos_sin)
    for name, tensor in (("slot_mapping", slot_mapping), ("positions", positions)):
        check_shape(name, tensor, tokens)
        check_dtype(name, tensor, torch.int64)
    if (q_norm is None) != (k_norm is None):
        raise ValueError("give q_norm and k_norm, or neither")
    norms = {} if q_norm is None or k_norm is None else {"q_norm": q_norm, "k_norm": k_norm}
    for name, tensor in norms.items():
        check_shape(name, tensor, head_dim)
        check_rows(name, tensor)
    check_same_device(kv=kv, q=q, k=k, v=v, slot_mapping=slot_mapping, cos_sin=cos_sin, positions=positions, **norms)
    if not use_triton(kv):
        return rotary_store_reference(q, k, v, kv, slot_mapping, cos_sin, positions, q_norm, k_norm, eps)
    if tokens == 0:
        return None
    q_heads, k_heads, pad = q.shape[1], k.shape[1], triton.next_power_of_2(head_dim // 2)
    q_pad = triton.next_power_of_2(q_heads)
    _rotary_store_kernel[(tokens,)](
        q,
        k,
        v,
        kv,
        slot_mapping,
        cos_sin,
        positions,
        q_norm,
        k_norm,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        kv.stride(0),
        cos_sin.stride(0),
        eps,
        Q_HEADS=q_heads,
        Q_PAD=q_pad,
        K_HEADS=k_heads,
        K_PAD=triton.next_power_of_2(k_heads),
        HALF=head_dim // 2,
        PAD=pad,
        BLOCK_SIZE=kv.shape[3],
        NORM=q_norm is not None,
        num_warps=max(1, min(8, q_pad * pad // 256)),
        **dependent_launch(q),
    )
    return None
