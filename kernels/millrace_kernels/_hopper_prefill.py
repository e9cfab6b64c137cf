"""What paged_prefill computes, for Hopper: see _hopper_attention."""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ._hopper_attention import attend_pages, constants, fits

#: Query rows, tokens, warps of a tile: two programs a multiprocessor overlap each other's products and exponentials.
_TILE = 64, 64, 4
#: Longest part of a prompt, in tokens, that this computes sooner than the portable kernel with its taller tiles, as
#: measured on an H200.
_MAX_QUERY_LEN = 1024


def takes_prefill(q: torch.Tensor, block_size: int, max_query_len: int, group: int) -> bool:
    """Whether `launch_prefill` is the one for these queries."""
    return max_query_len <= _MAX_QUERY_LEN and max_query_len * group > _TILE[0] and fits(q, block_size, _TILE[1])


@gluon.jit
def _find_sequence(cu_ptr, num_seqs, tile, GROUP: gl.constexpr, TILE_M: gl.constexpr):
    """Last sequence whose first tile is not past the given one; see paged_prefill."""
    low = 0
    high = num_seqs
    while high - low > 1:
        middle = (low + high) // 2
        if gl.load(cu_ptr + middle) * GROUP // TILE_M + middle <= tile:
            low = middle
        else:
            high = middle
    return low


@gluon.jit(do_not_specialize=["tables_ptr", "lines_ptr", "cu_ptr", "context_ptr", "num_seqs", "table_line"])
def _prefill_kernel(
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
    KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    LOG_BLOCK: gl.constexpr,
    LINES: gl.constexpr,
    TILE_M: gl.constexpr,
    TILE_N: gl.constexpr,
    WARPS: gl.constexpr,
):
    """As paged_prefill's: one program a (KV head, tile of rows), r of a sequence being a head of token r // GROUP."""
    DTYPE: gl.constexpr = q_ptr.dtype.element_ty
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, TILE_N, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, HEAD_DIM, 16])
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [WARPS, 1], [1, 0])
    kv_head = gl.program_id(0)
    # The last tiles of a sequence see the most tokens; they start first.
    tile = gl.num_programs(1) - 1 - gl.program_id(1)
    seq = _find_sequence(cu_ptr, num_seqs, tile, GROUP, TILE_M)
    first_token = gl.load(cu_ptr + seq)
    queries = gl.load(cu_ptr + seq + 1) - first_token
    first_row = (tile - (first_token * GROUP // TILE_M + seq)) * TILE_M
    if first_row < 0 or first_row >= queries * GROUP:
        return
    past = gl.load(context_ptr + seq) - queries
    row = first_row + gl.arange(0, TILE_M, layout=gl.SliceLayout(1, COPY))
    dim = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, COPY))
    query, head = row // GROUP, kv_head * GROUP + row % GROUP
    live = (query < queries)[:, None]
    token = (first_token + query).to(gl.int64)
    q = gl.load(q_ptr + (token * q_token + head * q_head)[:, None] + dim[None, :], mask=live, other=0.0)
    Q_TILE: gl.constexpr = gl.NVMMASharedLayout.get_default_for([TILE_M, HEAD_DIM], DTYPE)
    q_smem = gl.allocate_shared_memory(DTYPE, [TILE_M, HEAD_DIM], Q_TILE, q)
    k_ptr = kv_ptr + kv_head.to(gl.int64) * (BLOCK_SIZE * HEAD_DIM)
    line = gl.load(lines_ptr + seq) if LINES else seq
    full = (past + first_row // GROUP + 1) // TILE_N * TILE_N
    end = past + gl.minimum((first_row + TILE_M - 1) // GROUP + 1, queries)
    last = past + (first_row + gl.arange(0, TILE_M, layout=gl.SliceLayout(1, SCORES))) // GROUP
    sums, _, total = attend_pages(
        q_smem,
        k_ptr,
        k_ptr + KV_HEADS * BLOCK_SIZE * HEAD_DIM,
        tables_ptr + line.to(gl.int64) * table_line,
        0,
        full,
        end,
        last,
        kv_block,
        scale_log2,
        DTYPE,
        TILE_M,
        TILE_N,
        HEAD_DIM,
        BLOCK_SIZE,
        LOG_BLOCK,
        WARPS,
    )
    out = (sums / gl.convert_layout(total, gl.SliceLayout(1, SUMS))[:, None]).to(DTYPE)
    place = (token * (KV_HEADS * GROUP) + head) * HEAD_DIM
    gl.store(out_ptr + place[:, None] + dim[None, :], gl.convert_layout(out, COPY), mask=live)


def launch_prefill(
    q: torch.Tensor,
    kv: torch.Tensor,
    block_tables: torch.Tensor,
    lines: torch.Tensor | None,
    cu_seqlens_q: torch.Tensor,
    context_lens: torch.Tensor,
    scale_log2: float,
    out: torch.Tensor,
) -> None:
    """What paged_prefill computes; its arguments have been checked, and `takes_prefill`."""
    tokens, heads, head_dim = q.shape
    _, _, kv_heads, block_size, _ = kv.shape
    seqs, group = context_lens.shape[0], heads // kv_heads
    _prefill_kernel[(kv_heads, tokens * group // _TILE[0] + seqs)](
        q,
        kv,
        block_tables,
        lines,
        cu_seqlens_q,
        context_lens,
        out,
        scale_log2,
        seqs,
        q.stride(0),
        q.stride(1),
        kv.stride(0),
        block_tables.stride(0),
        LINES=lines is not None,
        **constants(kv_heads, group, head_dim, block_size, _TILE),
    )
