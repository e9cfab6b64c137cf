"""Write new keys and values into the pages of the KV cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._launch import check_dtype, check_kv, check_rows, check_same_device, check_shape, use_triton


def store_kv_reference(k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, slot_mapping: torch.Tensor) -> None:
    block_size = kv.shape[3]
    kept = slot_mapping >= 0
    if not bool(kept.all()):
        k, v, slot_mapping = k[kept], v[kept], slot_mapping[kept]
    blocks, offsets = slot_mapping // block_size, slot_mapping % block_size
    kv[:, 0][blocks, :, offsets] = k  # [T, Hkv, D]
    kv[:, 1][blocks, :, offsets] = v


@triton.jit
def _store_kv_kernel(
    k_ptr,
    v_ptr,
    kv_ptr,
    slots_ptr,
    k_token,
    k_head,
    v_token,
    v_head,
    kv_block,
    HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One program a token: all its heads, keys and values."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    if slot < 0:
        return
    element = tl.arange(0, WIDTH)
    head, dim = element // HEAD_DIM, element % HEAD_DIM
    live = element < HEADS * HEAD_DIM
    k = tl.load(k_ptr + token * k_token + head * k_head + dim, mask=live)
    v = tl.load(v_ptr + token * v_token + head * v_head + dim, mask=live)
    place = kv_ptr + slot // BLOCK_SIZE * kv_block + head * (BLOCK_SIZE * HEAD_DIM) + slot % BLOCK_SIZE * HEAD_DIM + dim
    tl.store(place, k, mask=live)
    tl.store(place + HEADS * BLOCK_SIZE * HEAD_DIM, v, mask=live)


def store_kv(k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, slot_mapping: torch.Tensor) -> None:
    """Put row t of k and v [T, Hkv, D] at slot_mapping[t] (int64) of one layer's cache view.

    A slot is block * block_size + offset; a negative one is padding and is skipped. k and v may be strided views of a
    fused projection. No two rows may name one slot.
    """
    check_kv(kv)
    tokens, (heads, head_dim) = slot_mapping.shape[0], (kv.shape[2], kv.shape[4])
    for name, tensor in (("k", k), ("v", v)):
        check_shape(name, tensor, tokens, heads, head_dim)
        check_dtype(name, tensor, kv.dtype)
        check_rows(name, tensor)
    check_shape("slot_mapping", slot_mapping, tokens)
    check_dtype("slot_mapping", slot_mapping, torch.int64)
    check_same_device(kv=kv, k=k, v=v, slot_mapping=slot_mapping)
    if not use_triton(kv):
        return store_kv_reference(k, v, kv, slot_mapping)
    if tokens == 0:
        return None
    width = triton.next_power_of_2(heads * head_dim)
    _store_kv_kernel[(tokens,)](
        k,
        v,
        kv,
        slot_mapping,
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        kv.stride(0),
        HEADS=heads,
        BLOCK_SIZE=kv.shape[3],
        HEAD_DIM=head_dim,
        WIDTH=width,
        num_warps=max(1, min(8, width // 256)),
    )
    return None
