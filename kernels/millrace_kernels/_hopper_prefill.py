"""What paged_prefill computes, for Hopper: see _hopper_attention."""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared

from ._hopper_attention import TILE_M, TILE_N, allocate_tiles, attend_tiles, constants, fits, load_tiles
from ._prefill_parts import LEAST_TURNS, PrefillParts, find_part, merge_parts

#: So many rows of the longest sequence, and fewer, are not worth a program's tile.
_FEW_ROWS = 64


def takes_prefill(q: torch.Tensor, kv: torch.Tensor, max_query_len: int) -> bool:
    """Whether `launch_prefill` is the one for these queries."""
    return max_query_len * (q.shape[1] // kv.shape[2]) > _FEW_ROWS and fits(q, kv, TILE_N)


@gluon.jit
def _find_sequence(cu_ptr, num_seqs, tile, GROUP: gl.constexpr, TILE_M: gl.constexpr):
    """Last sequence whose first tile is not past the given one; see paged_prefill."""
    WIDTH: gl.constexpr = 128
    lane = gl.arange(0, WIDTH, layout=gl.BlockedLayout([1], [32], [4], [0]))
    begun = 0
    # Many at once, where halving would wait for one read after another.
    for first in range(0, num_seqs, WIDTH):
        seq = first + lane
        tokens = gl.load(cu_ptr + seq, mask=seq < num_seqs, other=0)
        begun += gl.sum(((seq < num_seqs) & (tokens * GROUP // TILE_M + seq <= tile)).to(gl.int32), 0)
    return gl.maximum(begun - 1, 0)


@gluon.jit
def _attend(
    tiles,
    q_smem,
    half,
    work,
    parts,
    SPLIT: gl.constexpr,
    KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    ROWS: gl.constexpr,
    TILE_N: gl.constexpr,
    STAGES: gl.constexpr,
):
    """What a group does that multiplies: row r of a sequence is a head of its token r // GROUP.

    `half` says which of the tile's halves it has, `first_row` of the work where the tile begins.
    """
    first_row, first_token, queries, past, begin, full, end, kv_head, tensors = work
    q_ptr, out_ptr, q_token, q_head, scale_log2 = tensors
    DTYPE: gl.constexpr = q_ptr.dtype.element_ty
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE_N, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [4, 1], [1, 0])
    row = first_row + half * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, COPY))
    dim = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, COPY))
    query, head = row // GROUP, kv_head * GROUP + row % GROUP
    live = (query < queries)[:, None]
    token = (first_token + query).to(gl.int64)
    q_smem.store(gl.load(q_ptr + (token * q_token + head * q_head)[:, None] + dim[None, :], mask=live, other=0.0))
    fence_async_shared()
    gl.thread_barrier()
    tile_row = half * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, SCORES))
    last = past + (first_row + tile_row) // GROUP
    sums, top, total = attend_tiles(
        q_smem, tiles, begin, full, end, last, scale_log2, DTYPE, ROWS, TILE_N, HEAD_DIM, STAGES
    )
    total = gl.convert_layout(total, gl.SliceLayout(1, SUMS))
    # Every program has what it writes: all of a tile, unless a part says otherwise.
    whole = first_row >= 0
    if SPLIT:
        num_parts = parts[1]
        if num_parts > 1:
            whole, sums, total = merge_parts(
                sums,
                gl.convert_layout(top, gl.SliceLayout(1, SUMS)),
                total,
                parts,
                half,
                gl.convert_layout(tile_row, gl.SliceLayout(1, SUMS)),
                SUMS,
                HEAD_DIM,
                KV_HEADS * 2 * ROWS,
            )
    if whole:
        out = (sums / total[:, None]).to(DTYPE)
        place = (token * (KV_HEADS * GROUP) + head) * HEAD_DIM
        gl.store(out_ptr + place[:, None] + dim[None, :], gl.convert_layout(out, COPY), mask=live)


@gluon.jit(do_not_specialize=["tables_ptr", "lines_ptr", "cu_ptr", "context_ptr", "num_seqs", "most", "table_line"])
def _prefill_kernel(
    q_ptr,
    kv_ptr,
    tables_ptr,
    lines_ptr,
    cu_ptr,
    context_ptr,
    out_ptr,
    arrivals_ptr,
    partial_ptr,
    lse_ptr,
    scale_log2,
    num_seqs,
    most,
    q_token,
    q_head,
    kv_block,
    table_line,
    LINES: gl.constexpr,
    SPLIT: gl.constexpr,
    LEAST: gl.constexpr,
    KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    LOG_BLOCK: gl.constexpr,
    ROWS: gl.constexpr,
    TILE_N: gl.constexpr,
    STAGES: gl.constexpr,
    SECOND: gl.constexpr,
    LOADER: gl.constexpr,
):
    """As paged_prefill's: one program a (KV head, tile of rows), or with SPLIT one a part of such a tile's context."""
    DTYPE: gl.constexpr = q_ptr.dtype.element_ty
    TILE_M: gl.constexpr = 2 * ROWS
    kv_head = gl.program_id(0)
    if SPLIT:
        number, seq, tile, part, length, counter = find_part(
            cu_ptr, context_ptr, num_seqs, gl.program_id(1), most, GROUP, TILE_M, TILE_N, LEAST
        )
        if number < 0:
            return
        first_row = tile * TILE_M
    else:
        # The last tiles of a sequence see the most tokens; they start first.
        tile = gl.num_programs(1) - 1 - gl.program_id(1)
        seq = _find_sequence(cu_ptr, num_seqs, tile, GROUP, TILE_M)
    first_token = gl.load(cu_ptr + seq)
    queries = gl.load(cu_ptr + seq + 1) - first_token
    if not SPLIT:
        first_row = (tile - (first_token * GROUP // TILE_M + seq)) * TILE_M
        if first_row < 0 or first_row >= queries * GROUP:
            return
    past = gl.load(context_ptr + seq) - queries
    begin = 0
    full = (past + first_row // GROUP + 1) // TILE_N * TILE_N
    end = past + gl.minimum((first_row + TILE_M - 1) // GROUP + 1, queries)
    parts = ()
    if SPLIT:
        # Each part begins with a tile that all rows see; the last one has what only some do.
        num_parts = gl.maximum((full // TILE_N + length - 1) // length, 1)
        if part >= num_parts:
            return
        length = (full // TILE_N + num_parts - 1) // num_parts * TILE_N
        begin = part * length
        end = gl.where(part == num_parts - 1, end, begin + length)
        place = ((number - part).to(gl.int64) * KV_HEADS + kv_head) * TILE_M
        parts = (
            part,
            num_parts,
            arrivals_ptr + (counter * KV_HEADS + kv_head) * 2,
            partial_ptr + place * HEAD_DIM,
            lse_ptr + place,
        )
    line = gl.load(lines_ptr + seq) if LINES else seq
    table_ptr = tables_ptr + line.to(gl.int64) * table_line
    k_ptr = kv_ptr + kv_head.to(gl.int64) * (BLOCK_SIZE * HEAD_DIM)
    v_ptr = k_ptr + KV_HEADS * BLOCK_SIZE * HEAD_DIM
    Q_TILE: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, HEAD_DIM], DTYPE)
    q_smem = gl.allocate_shared_memory(DTYPE, [2, ROWS, HEAD_DIM], Q_TILE)
    tiles = allocate_tiles(DTYPE, TILE_N, HEAD_DIM, STAGES)
    tensors = q_ptr, out_ptr, q_token, q_head, scale_log2
    work = first_row, first_token, queries, past, begin, full, end, kv_head, tensors
    gl.warp_specialize(
        [
            (_attend, (tiles, q_smem.index(0), 0, work, parts, SPLIT, KV_HEADS, GROUP, HEAD_DIM, ROWS, TILE_N, STAGES)),
            (_attend, (tiles, q_smem.index(1), 1, work, parts, SPLIT, KV_HEADS, GROUP, HEAD_DIM, ROWS, TILE_N, STAGES)),
            (
                load_tiles,
                (tiles, k_ptr, v_ptr, table_ptr, begin, end, kv_block, TILE_N, HEAD_DIM, BLOCK_SIZE, LOG_BLOCK, STAGES),
            ),
        ],
        [4, 4],
        [SECOND, LOADER],
    )


def launch_prefill(
    q: torch.Tensor,
    kv: torch.Tensor,
    block_tables: torch.Tensor,
    lines: torch.Tensor | None,
    cu_seqlens_q: torch.Tensor,
    context_lens: torch.Tensor,
    scale_log2: float,
    out: torch.Tensor,
    arrivals: torch.Tensor | None,
) -> None:
    """What paged_prefill computes; its arguments have been checked, and `takes_prefill`."""
    tokens, heads, head_dim = q.shape
    _, _, kv_heads, block_size, _ = kv.shape
    seqs, group = context_lens.shape[0], heads // kv_heads
    programs = tokens * group // TILE_M + seqs
    parts = PrefillParts.of(arrivals, seqs, kv_heads, TILE_M, head_dim)
    if parts is not None:
        programs = max(programs, parts.most)
    _prefill_kernel[(kv_heads, programs)](
        q,
        kv,
        block_tables,
        lines,
        cu_seqlens_q,
        context_lens,
        out,
        parts and parts.arrivals,
        parts and parts.partial,
        parts and parts.lse,
        scale_log2,
        seqs,
        parts.most if parts else 0,
        q.stride(0),
        q.stride(1),
        kv.stride(0),
        block_tables.stride(0),
        LINES=lines is not None,
        SPLIT=parts is not None,
        LEAST=LEAST_TURNS,
        **constants(kv_heads, group, head_dim, block_size),
    )
