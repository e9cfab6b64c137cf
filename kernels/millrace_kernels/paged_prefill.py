"""Causal attention of many query tokens a sequence over its paged context: prompts, chunks of prompts, prefix hits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._attention import attend, load_tile
from ._hopper_prefill import launch_prefill, takes_prefill
from ._launch import check_contiguous, check_dtype, check_queries, check_same_device, check_shape, use_triton

_LOG2_E = 1.4426950408889634
#: Query rows of the tallest tile.
_TALLEST = 256


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


@triton.jit
def _first_tile(cu_ptr, seq, GROUP: tl.constexpr, TILE_M: tl.constexpr):
    """Number of the first tile of a sequence. One tile more than its rows fill is set aside, so no sum is needed."""
    return tl.load(cu_ptr + seq) * GROUP // TILE_M + seq


@triton.jit
def _find_sequence(cu_ptr, num_seqs, tile, GROUP: tl.constexpr, TILE_M: tl.constexpr):
    """Last sequence whose first tile is not past the given one."""
    low, high = tl.full([], 0, tl.int32), num_seqs
    while high - low > 1:
        middle = (low + high) // 2
        if _first_tile(cu_ptr, middle, GROUP, TILE_M) <= tile:
            low = middle
        else:
            high = middle
    return low


# What changes from step to step is not specialised on: each new mix would be compiled in the middle of the work.
@triton.jit(do_not_specialize=["tables_ptr", "lines_ptr", "cu_ptr", "context_ptr", "num_seqs", "table_line"])
def _paged_prefill_kernel(
    q_ptr,
    kv_ptr,
    tables_ptr,
    lines_ptr,
    cu_ptr,
    context_ptr,
    out_ptr,
    scale_log2,
    num_seqs,
    q_token,
    q_head,
    kv_block,
    table_line,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    LINES: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
):
    """One program a (KV head, tile of rows); row r of a sequence is head r % GROUP of its query token r // GROUP."""
    kv_head = tl.program_id(0)
    # The last tiles of a sequence see the most tokens; they start first.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    seq = _find_sequence(cu_ptr, num_seqs, tile, GROUP, TILE_M)
    first_token = tl.load(cu_ptr + seq)
    queries = tl.load(cu_ptr + seq + 1) - first_token
    first_row = (tile - _first_tile(cu_ptr, seq, GROUP, TILE_M)) * TILE_M
    # Before the first sequence's rows there may be others'; behind the last one's, the tiles set aside are left over.
    if first_row < 0 or first_row >= queries * GROUP:
        return

    row, dim = first_row + tl.arange(0, TILE_M), tl.arange(0, DIM_PAD)
    query, head = row // GROUP, kv_head * GROUP + row % GROUP
    past = tl.load(context_ptr + seq) - queries
    q_live = (query < queries)[:, None] & (dim < HEAD_DIM)[None, :]
    token_row = (first_token + query).to(tl.int64)
    q_place = token_row * q_token + head * q_head
    q = tl.load(q_ptr + q_place[:, None] + dim[None, :], mask=q_live, other=0.0)
    head_ptr = kv_ptr + kv_head.to(tl.int64) * (BLOCK_SIZE * HEAD_DIM)
    line = tl.load(lines_ptr + seq) if LINES else seq
    table_ptr = tables_ptr + line.to(tl.int64) * table_line
    acc = tl.zeros([TILE_M, DIM_PAD], tl.float32)
    top = tl.full([TILE_M], float("-inf"), tl.float32)
    total = tl.zeros([TILE_M], tl.float32)

    # Tiles that every row sees in full, then those that need a mask; later ones no row sees.
    full = (past + first_row // GROUP + 1) // TILE_N * TILE_N
    end = past + tl.minimum((first_row + TILE_M - 1) // GROUP + 1, queries)
    for start in tl.range(0, full, TILE_N):
        token = start + tl.arange(0, TILE_N)
        live = token < full
        k, v = load_tile(head_ptr, table_ptr, token, live, kv_block, KV_HEADS, BLOCK_SIZE, HEAD_DIM, DIM_PAD, False)
        acc, top, total = attend(q, k, v, live, acc, top, total, scale_log2, MASKED=False)
    for start in tl.range(full, end, TILE_N):
        token = start + tl.arange(0, TILE_N)
        live = token < end
        k, v = load_tile(head_ptr, table_ptr, token, live, kv_block, KV_HEADS, BLOCK_SIZE, HEAD_DIM, DIM_PAD, True)
        visible = (token[None, :] <= past + query[:, None]) & live[None, :]
        acc, top, total = attend(q, k, v, visible, acc, top, total, scale_log2, MASKED=True)

    out_place = (token_row * (KV_HEADS * GROUP) + head) * HEAD_DIM
    tl.store(out_ptr + out_place[:, None] + dim[None, :], acc / total[:, None], mask=q_live)


def paged_prefill(
    q: torch.Tensor,
    kv: torch.Tensor,
    block_tables: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    context_lens: torch.Tensor,
    max_query_len: int,
    scale: float,
    *,
    lines: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    arrivals: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of q [T, Hq, D], whose rows cu_seqlens_q[s] to cu_seqlens_q[s + 1] are the last tokens of context s.

    Other rows are not looked at, and what they give is undefined; where `out` is given, theirs there stay.

    cu_seqlens_q [S + 1], context_lens [S] and block_tables [L, M] are int32; a context includes its query tokens, whose
    keys and values are in the cache already. `lines` [S] (int32) says which line of the tables is whose, None that line
    s is of sequence s. max_query_len is the largest number of query tokens of a sequence.

    With `arrivals` (see `prefill_arrivals`), several programs read the contexts of few queries in parts, where there
    are kernels that can; what is computed is the same up to rounding.
    """
    check_queries(q, kv, block_tables, out)
    seqs = context_lens.shape[0]
    wanted = {"cu_seqlens_q": (cu_seqlens_q, seqs + 1), "context_lens": (context_lens, seqs)}
    if lines is None:
        check_shape("block_tables", block_tables, seqs, None)
    else:
        wanted["lines"] = lines, seqs
    for name, (tensor, count) in wanted.items():
        check_shape(name, tensor, count)
        check_dtype(name, tensor, torch.int32)
    tensors = {name: tensor for name, (tensor, _) in wanted.items()}
    if arrivals is not None:
        check_dtype("arrivals", arrivals, torch.int32)
        check_contiguous("arrivals", arrivals)
        tensors["arrivals"] = arrivals
    check_same_device(q=q, kv=kv, block_tables=block_tables, **tensors)
    if q.shape[0] and max_query_len < 1:
        raise ValueError(f"max_query_len is {max_query_len} for {q.shape[0]} query tokens; it must be at least 1")
    if not use_triton(q):
        tables = block_tables if lines is None else block_tables[lines.long()]
        result = paged_prefill_reference(q, kv, tables, cu_seqlens_q, context_lens, scale)
        if out is None:
            return result
        rows = slice(int(cu_seqlens_q[0]), int(cu_seqlens_q[-1]))
        out[rows] = result[rows]
        return out
    if out is None:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
    if q.shape[0] and seqs:
        _launch_prefill(q, kv, block_tables, lines, cu_seqlens_q, context_lens, max_query_len, scale, out, arrivals)
    return out


def _tiles(rows: int, programs: int, dim_pad: int, itemsize: int) -> tuple[int, int, int, int]:
    """(TILE_M, TILE_N, num_warps, num_stages) for sequences of up to `rows` query rows.

    `programs` is how many of the largest tile there would be.
    """
    if itemsize == 4:
        return (16, 16, 4, 2) if dim_pad > 64 else (16, 32, 4, 2)
    if rows <= 16:
        return 16, 64, 4, 2
    if dim_pad > 128:
        return 64, 64, 8, 2
    if rows <= 64:
        return 64, 64, 4, 3
    # As measured on an H200: the taller the tile the better, while there are enough of them.
    return (_TALLEST, 64, 8, 3) if programs >= 256 else (128, 64, 4, 3)


def _launch_prefill(
    q: torch.Tensor,
    kv: torch.Tensor,
    block_tables: torch.Tensor,
    lines: torch.Tensor | None,
    cu_seqlens_q: torch.Tensor,
    context_lens: torch.Tensor,
    max_query_len: int,
    scale: float,
    out: torch.Tensor,
    arrivals: torch.Tensor | None,
) -> None:
    tokens, heads, head_dim = q.shape
    _, _, kv_heads, block_size, _ = kv.shape
    # Matrix products want 16 columns at least.
    seqs, group, dim_pad = context_lens.shape[0], heads // kv_heads, max(16, triton.next_power_of_2(head_dim))
    if takes_prefill(q, kv, max_query_len):
        launch_prefill(q, kv, block_tables, lines, cu_seqlens_q, context_lens, scale * _LOG2_E, out, arrivals)
        return
    programs = tokens * group // _TALLEST * kv_heads
    tile_m, tile_n, warps, stages = _tiles(max_query_len * group, programs, dim_pad, kv.element_size())
    # An upper bound of the tiles that needs no look at the lengths on the device.
    grid = (kv_heads, tokens * group // tile_m + seqs)
    _paged_prefill_kernel[grid](
        q,
        kv,
        block_tables,
        lines,
        cu_seqlens_q,
        context_lens,
        out,
        scale * _LOG2_E,
        seqs,
        q.stride(0),
        q.stride(1),
        kv.stride(0),
        block_tables.stride(0),
        KV_HEADS=kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        DIM_PAD=dim_pad,
        BLOCK_SIZE=block_size,
        LINES=lines is not None,
        TILE_M=tile_m,
        TILE_N=tile_n,
        num_warps=warps,
        num_stages=stages,
    )
