"""Attention of one query token a sequence over its paged context."""

from __future__ import annotations

import torch

from ._launch import check_dtype, check_queries, check_same_device, check_shape


def paged_decode_reference(
    q: torch.Tensor, kv: torch.Tensor, block_tables: torch.Tensor, context_lens: torch.Tensor, scale: float
) -> torch.Tensor:
    seqs, heads, head_dim = q.shape
    _, _, kv_heads, block_size, _ = kv.shape
    longest = int(context_lens.max()) if seqs else 0
    if longest == 0:
        return torch.zeros_like(q, memory_format=torch.contiguous_format)
    pages = -(-longest // block_size)
    position = torch.arange(pages * block_size, device=q.device)
    absent = position >= context_lens[:, None]  # [S, L]
    # Entries past a sequence's context may hold anything; page 0 always exists.
    tables = block_tables[:, :pages].masked_fill(absent[:, ::block_size], 0).long()
    cache = kv.transpose(0, 2)  # [Hkv, 2, blocks, block_size, D]
    shape = (kv_heads, seqs, pages * block_size, head_dim)
    k = cache[:, 0][:, tables].reshape(shape).float()
    # A weight of zero does not silence NaN in unused slots; a value of zero does.
    v = cache[:, 1][:, tables].reshape(shape).float().masked_fill(absent[None, :, :, None], 0)
    grouped = q.float().view(seqs, kv_heads, -1, head_dim).transpose(0, 1)  # [Hkv, S, group, D]
    scores = (grouped @ k.transpose(-1, -2) * scale).masked_fill(absent[None, :, None, :], float("-inf"))
    weights = scores.softmax(-1).masked_fill((context_lens <= 0)[None, :, None, None], 0)
    return (weights @ v).transpose(0, 1).reshape(seqs, heads, head_dim).to(q.dtype)


def paged_decode(
    q: torch.Tensor,
    kv: torch.Tensor,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    scale: float,
    *,
    num_splits: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of q [S, Hq, D] over contexts of context_lens [S] (int32) tokens, the query's own included.

    kv is one layer's cache view; block_tables [S, M] (int32) lists each sequence's blocks, and what it holds past the
    context is not read. A context of 0 gives zeros. num_splits cuts each context so that few sequences fill the device;
    None settles it from shapes alone.
    """
    check_queries(q, kv, block_tables, out)
    seqs = q.shape[0]
    check_shape("block_tables", block_tables, seqs, None)
    check_shape("context_lens", context_lens, seqs)
    check_dtype("context_lens", context_lens, torch.int32)
    check_same_device(q=q, kv=kv, block_tables=block_tables, context_lens=context_lens)
    if num_splits is not None and num_splits < 1:
        raise ValueError(f"num_splits is {num_splits}; it must be at least 1, or None")
    result = paged_decode_reference(q, kv, block_tables, context_lens, scale)
    return result if out is None else out.copy_(result)
