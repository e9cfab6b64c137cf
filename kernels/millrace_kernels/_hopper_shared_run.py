"""What _shared_run computes, for Hopper: see _hopper_attention."""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared

from ._hopper_attention import TILE_M, allocate_tiles, attend_tiles, constants, fits, load_tiles
from .decode_plan import CUT, DecodePlan


def takes_shared_runs(q: torch.Tensor, kv: torch.Tensor, plan: DecodePlan) -> bool:
    """Whether `launch_shared_runs` is the one for this plan."""
    # Parts begin at multiples of CUT, which would be in the middle of a larger block.
    return plan.shape.tile_rows == TILE_M and fits(q, kv, CUT)


@gluon.jit
def _attend(
    tiles,
    q_smem,
    first_row,
    work,
    tensors,
    KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    ROWS: gl.constexpr,
    TILE_N: gl.constexpr,
    STAGES: gl.constexpr,
):
    """What a group does that multiplies: row r of the tile is a head of member r // GROUP."""
    first, count, begin, end, part, kv_head = work
    q_ptr, members_ptr, slots_ptr, partial_ptr, lse_ptr, q_row, q_head, scale_log2 = tensors
    DTYPE: gl.constexpr = q_ptr.dtype.element_ty
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE_N, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [4, 1], [1, 0])
    OUT: gl.constexpr = gl.BlockedLayout([1, 4], [128 // HEAD_DIM, HEAD_DIM // 4], [4, 1], [1, 0])
    row = first_row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, COPY))
    dim = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, COPY))
    live = row // GROUP < count
    query = gl.load(members_ptr + first + row // GROUP, mask=live, other=0).to(gl.int64)
    q_place = query * q_row + (kv_head * GROUP + row % GROUP) * q_head
    q_smem.store(gl.load(q_ptr + q_place[:, None] + dim[None, :], mask=live[:, None], other=0.0))
    fence_async_shared()
    gl.thread_barrier()
    full = begin + (end - begin) // TILE_N * TILE_N
    last = gl.full([ROWS], 0, gl.int32, layout=gl.SliceLayout(1, SCORES)) + (end - 1)
    sums, top, total = attend_tiles(
        q_smem, tiles, begin, full, end, last, scale_log2, DTYPE, ROWS, TILE_N, HEAD_DIM, STAGES
    )
    sums = gl.convert_layout(sums / gl.convert_layout(total, gl.SliceLayout(1, SUMS))[:, None], OUT)
    lse = gl.convert_layout(top + gl.log2(total), gl.SliceLayout(1, OUT))
    row = first_row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, OUT))
    dim = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, OUT))
    live = row // GROUP < count
    slot = gl.load(slots_ptr + first + row // GROUP, mask=live, other=0).to(gl.int64) + part
    place = slot * (KV_HEADS * GROUP) + kv_head * GROUP + row % GROUP
    gl.store(partial_ptr + place[:, None] * HEAD_DIM + dim[None, :], sums, mask=live[:, None])
    gl.store(lse_ptr + place, lse, mask=live)


@gluon.jit(do_not_specialize=["tables_ptr", "shared_ptr", "members_ptr", "slots_ptr", "table_line"])
def _shared_run_kernel(
    q_ptr,
    kv_ptr,
    tables_ptr,
    shared_ptr,
    members_ptr,
    slots_ptr,
    partial_ptr,
    lse_ptr,
    scale_log2,
    q_row,
    q_head,
    kv_block,
    table_line,
    WIDTH: gl.constexpr,
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
    """As _shared_run's: one program a (KV head, record)."""
    DTYPE: gl.constexpr = q_ptr.dtype.element_ty
    kv_head, record = gl.program_id(0), shared_ptr + gl.program_id(1) * WIDTH
    first, count, line = gl.load(record), gl.load(record + 1), gl.load(record + 2).to(gl.int64)
    begin, end, part = gl.load(record + 3), gl.load(record + 4), gl.load(record + 5)
    if first < 0:
        return
    k_ptr = kv_ptr + kv_head.to(gl.int64) * (BLOCK_SIZE * HEAD_DIM)
    v_ptr = k_ptr + KV_HEADS * BLOCK_SIZE * HEAD_DIM
    table_ptr = tables_ptr + line * table_line
    Q_TILE: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, HEAD_DIM], DTYPE)
    q_smem = gl.allocate_shared_memory(DTYPE, [2, ROWS, HEAD_DIM], Q_TILE)
    tiles = allocate_tiles(DTYPE, TILE_N, HEAD_DIM, STAGES)
    work = first, count, begin, end, part, kv_head
    tensors = q_ptr, members_ptr, slots_ptr, partial_ptr, lse_ptr, q_row, q_head, scale_log2
    gl.warp_specialize(
        [
            (_attend, (tiles, q_smem.index(0), 0, work, tensors, KV_HEADS, GROUP, HEAD_DIM, ROWS, TILE_N, STAGES)),
            (_attend, (tiles, q_smem.index(1), ROWS, work, tensors, KV_HEADS, GROUP, HEAD_DIM, ROWS, TILE_N, STAGES)),
            (
                load_tiles,
                (tiles, k_ptr, v_ptr, table_ptr, begin, end, kv_block, TILE_N, HEAD_DIM, BLOCK_SIZE, LOG_BLOCK, STAGES),
            ),
        ],
        [4, 4],
        [SECOND, LOADER],
    )


def launch_shared_runs(
    q: torch.Tensor,
    kv: torch.Tensor,
    block_tables: torch.Tensor,
    plan: DecodePlan,
    scale_log2: float,
    partial: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    """What _shared_run.attend_shared computes, of a plan that it takes."""
    assert plan.shared is not None
    _, heads, head_dim = q.shape
    _, _, kv_heads, block_size, _ = kv.shape
    _shared_run_kernel[(kv_heads, plan.shared.shape[0])](
        q,
        kv,
        block_tables,
        plan.shared,
        plan.members,
        plan.member_slots,
        partial,
        lse,
        scale_log2,
        q.stride(0),
        q.stride(1),
        kv.stride(0),
        block_tables.stride(0),
        WIDTH=plan.shared.shape[1],
        **constants(kv_heads, heads // kv_heads, head_dim, block_size),
    )
