"""Causal attention of many query tokens a sequence over its paged context: prompts, chunks of prompts, prefix hits."""

from __future__ import annotations

import torch

from ._launch import check_dtype, check_queries, check_same_device, check_shape


def paged_prefill_reference(
    q: torch.Tensor,
    kv: torch.Tensor,
    block_tables: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    context_lens: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    _, heads, head_dim = q.shape
    _, _, kv_heads, block_size, _ = kv.shape
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    starts, lengths = cu_seqlens_q.tolist(), context_lens.tolist()
    for seq, context in enumerate(lengths):
        begin, end = starts[seq], starts[seq + 1]
        if begin == end:
            continue
        table = block_tables[seq, : -(-context // block_size)].long()
        pages = kv[table].permute(1, 2, 0, 3, 4).reshape(2, kv_heads, -1, head_dim)
        k, v = pages[:, :, :context].float()  # [Hkv, context, D]
        queries = q[begin:end].float().view(end - begin, kv_heads, -1, head_dim).permute(1, 2, 0, 3)
        scores = queries @ k.transpose(-1, -2)[:, None] * scale  # [Hkv, group, queries, context]
        if end - begin > 1:
            future = torch.ones(end - begin, context, dtype=torch.bool, device=q.device)
            scores.masked_fill_(future.triu_(context - (end - begin) + 1), float("-inf"))
        attended = scores.softmax(-1) @ v[:, None]
        out[begin:end] = attended.permute(2, 0, 1, 3).reshape(end - begin, heads, head_dim)
    return out


def paged_prefill(
    q: torch.Tensor,
    kv: torch.Tensor,
    block_tables: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    context_lens: torch.Tensor,
    max_query_len: int,
    scale: float,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of q [T, Hq, D], whose rows cu_seqlens_q[s] to cu_seqlens_q[s + 1] are the last tokens of context s.

    cu_seqlens_q [S + 1], context_lens [S] and block_tables [S, M] are int32; a context includes its query tokens, whose
    keys and values are in the cache already. max_query_len is the largest number of query tokens of a sequence; rows
    past the last sequence are padding, and what they give is undefined.
    """
    check_queries(q, kv, block_tables, out)
    seqs = block_tables.shape[0]
    check_shape("cu_seqlens_q", cu_seqlens_q, seqs + 1)
    check_dtype("cu_seqlens_q", cu_seqlens_q, torch.int32)
    check_shape("context_lens", context_lens, seqs)
    check_dtype("context_lens", context_lens, torch.int32)
    check_same_device(q=q, kv=kv, block_tables=block_tables, cu_seqlens_q=cu_seqlens_q, context_lens=context_lens)
    if q.shape[0] and max_query_len < 1:
        raise ValueError(f"max_query_len is {max_query_len} for {q.shape[0]} query tokens; it must be at least 1")
    result = paged_prefill_reference(q, kv, block_tables, cu_seqlens_q, context_lens, scale)
    return result if out is None else out.copy_(result)
