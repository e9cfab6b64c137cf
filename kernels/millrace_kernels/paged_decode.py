"""Attention of one query token a sequence over its paged context."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._attention import attend, load_tile
from ._dependent import await_inputs, dependent_launch
from ._launch import check_dtype, check_queries, check_same_device, check_shape, multiprocessors, use_triton

_LOG2_E = 1.4426950408889634
_MAX_SPLITS = 64


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


# What changes from step to step is not specialised on: each new mix would be compiled in the middle of the work.
@triton.jit(do_not_specialize=["tables_ptr", "context_ptr", "num_splits", "min_chunk", "table_row"])
def _paged_decode_kernel(
    q_ptr,
    kv_ptr,
    tables_ptr,
    context_ptr,
    out_ptr,
    lse_ptr,
    scale_log2,
    num_splits,
    min_chunk,
    q_seq,
    q_head,
    kv_block,
    table_row,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a (KV head, sequence, split): all query heads of the group are the rows of one tile.

    out is [S, Hq, D], or with SPLIT the float32 partial results [S, Hq, splits, D] beside lse [S, Hq, splits], the
    base-2 logarithms of their weights.
    """
    await_inputs(PDL)
    kv_head, seq, split = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    context = tl.load(context_ptr + seq)
    row, dim = tl.arange(0, GROUP_PAD), tl.arange(0, DIM_PAD)
    head = kv_head * GROUP + row
    slot = (seq * (KV_HEADS * GROUP) + head) * num_splits + split
    begin, end = 0, context
    if SPLIT:
        chunk = tl.maximum(tl.cdiv(tl.cdiv(context, num_splits), TILE) * TILE, min_chunk)
        begin = split * chunk
        end = tl.minimum(begin + chunk, context)
        if begin >= end:
            tl.store(lse_ptr + slot, tl.full([GROUP_PAD], float("-inf"), tl.float32), mask=row < GROUP)
            return

    q_live = (row < GROUP)[:, None] & (dim < HEAD_DIM)[None, :]
    q = tl.load(q_ptr + seq * q_seq + head[:, None] * q_head + dim[None, :], mask=q_live, other=0.0)
    head_ptr = kv_ptr + kv_head.to(tl.int64) * (BLOCK_SIZE * HEAD_DIM)
    table_ptr = tables_ptr + seq * table_row
    acc = tl.zeros([GROUP_PAD, DIM_PAD], tl.float32)
    top = tl.full([GROUP_PAD], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_PAD], tl.float32)
    for start in tl.range(begin, end, TILE):
        token = start + tl.arange(0, TILE)
        live = token < end
        k, v = load_tile(head_ptr, table_ptr, token, live, kv_block, KV_HEADS, BLOCK_SIZE, HEAD_DIM, DIM_PAD, True)
        acc, top, total = attend(q, k, v, live[None, :], acc, top, total, scale_log2, MASKED=True)

    # An empty context has a total of zero and gives zeros.
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out_ptr + slot[:, None] * HEAD_DIM + dim[None, :], acc, mask=q_live)
    if SPLIT:
        tl.store(lse_ptr + slot, top + tl.log2(total), mask=row < GROUP)


@triton.jit(do_not_specialize=["num_splits"])
def _merge_kernel(
    partial_ptr,
    lse_ptr,
    out_ptr,
    num_splits,
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    SPLITS_PAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a row of out: the mean of its partial results, weighted by 2^lse, -inf for an unused split."""
    await_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    split, dim = tl.arange(0, SPLITS_PAD), tl.arange(0, DIM_PAD)
    lse = tl.load(lse_ptr + row * num_splits + split, mask=split < num_splits, other=float("-inf"))
    top = tl.max(lse, axis=0)
    # With no split in use, -inf minus -inf would be NaN.
    weights = tl.exp2(lse - tl.where(top == float("-inf"), 0.0, top))
    live = (weights > 0)[:, None] & (dim < HEAD_DIM)[None, :]
    place = (row * num_splits + split)[:, None] * HEAD_DIM + dim[None, :]
    partial = tl.load(partial_ptr + place, mask=live, other=0.0)
    total = tl.sum(weights, axis=0)
    merged = tl.sum(partial * weights[:, None], axis=0) / tl.where(total > 0, total, 1.0)
    tl.store(out_ptr + row * HEAD_DIM + dim, merged, mask=dim < HEAD_DIM)


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
    if not use_triton(q):
        result = paged_decode_reference(q, kv, block_tables, context_lens, scale)
        return result if out is None else out.copy_(result)
    if out is None:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
    if seqs == 0:
        return out
    if num_splits is None:
        num_splits = _splits(seqs * kv.shape[2], block_tables.shape[1] * kv.shape[3], multiprocessors(q))
    _launch_decode(q, kv, block_tables, context_lens, scale, num_splits, out)
    return out


def _splits(programs: int, longest: int, processors: int) -> int:
    """Into how many parts to cut contexts of up to `longest` tokens, so that some programs wait for each processor."""
    wanted = (12 * processors + programs) // (2 * programs)
    return max(1, min(wanted, longest // _least_chunk(programs), _MAX_SPLITS))


def _least_chunk(programs: int) -> int:
    """Fewest tokens that are worth a program of their own when a context is split."""
    return 64 if programs <= 16 else 128


def _tiles(programs: int, splits: int, dim_pad: int, group_pad: int, itemsize: int) -> tuple[int, int, int]:
    """(TILE, num_warps, num_stages)"""
    row_bytes = dim_pad * itemsize
    if row_bytes == 256 and itemsize == 2 and group_pad == 16:  # as measured on an H200
        return (64, 4, 3) if splits == 1 else (64, 2, 3) if programs <= 32 else (64, 4, 2)
    tile = max(16, min(64, 16384 // row_bytes))
    return tile, 4 if row_bytes > 256 or group_pad > 16 or itemsize == 4 else 2, 2 if itemsize == 4 else 3


def _launch_decode(
    q: torch.Tensor,
    kv: torch.Tensor,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    scale: float,
    num_splits: int,
    out: torch.Tensor,
) -> None:
    seqs, heads, head_dim = q.shape
    _, _, kv_heads, block_size, _ = kv.shape
    group, dim_pad = heads // kv_heads, max(16, triton.next_power_of_2(head_dim))
    group_pad = max(16, triton.next_power_of_2(group))
    tile, warps, stages = _tiles(seqs * kv_heads, num_splits, dim_pad, group_pad, kv.element_size())
    result, lse = out, None
    if num_splits > 1:
        result = q.new_empty(seqs, heads, num_splits, head_dim, dtype=torch.float32)
        lse = q.new_empty(seqs, heads, num_splits, dtype=torch.float32)
    _paged_decode_kernel[(kv_heads, seqs, num_splits)](
        q,
        kv,
        block_tables,
        context_lens,
        result,
        lse,
        scale * _LOG2_E,
        num_splits,
        _least_chunk(seqs * kv_heads),
        q.stride(0),
        q.stride(1),
        kv.stride(0),
        block_tables.stride(0),
        KV_HEADS=kv_heads,
        GROUP=group,
        GROUP_PAD=group_pad,
        HEAD_DIM=head_dim,
        DIM_PAD=dim_pad,
        BLOCK_SIZE=block_size,
        TILE=tile,
        SPLIT=num_splits > 1,
        num_warps=warps,
        num_stages=stages,
        **dependent_launch(q),
    )
    if num_splits > 1:
        _merge_kernel[(seqs * heads,)](
            result,
            lse,
            out,
            num_splits,
            HEAD_DIM=head_dim,
            DIM_PAD=dim_pad,
            SPLITS_PAD=triton.next_power_of_2(num_splits),
            num_warps=4,
            **dependent_launch(q),
        )
