"""Write new keys and values into the pages of the KV cache."""

from __future__ import annotations

import torch

from ._launch import check_dtype, check_kv, check_rows, check_same_device, check_shape


def store_kv_reference(k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, slot_mapping: torch.Tensor) -> None:
    block_size = kv.shape[3]
    kept = slot_mapping >= 0
    if not bool(kept.all()):
        k, v, slot_mapping = k[kept], v[kept], slot_mapping[kept]
    blocks, offsets = slot_mapping // block_size, slot_mapping % block_size
    kv[:, 0][blocks, :, offsets] = k  # [T, Hkv, D]
    kv[:, 1][blocks, :, offsets] = v


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
    store_kv_reference(k, v, kv, slot_mapping)
