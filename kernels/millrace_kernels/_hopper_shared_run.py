"""What _shared_run computes, for Hopper: see _hopper_attention."""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ._hopper_attention import attend_pages, constants, fits
from .decode_plan import CUT, DecodePlan

#: Query rows, tokens, warps of a tile.
_TILE = 128, 128, 8


def takes_shared_runs(q: torch.Tensor, block_size: int, plan: DecodePlan) -> bool:
    """Whether `launch_shared_runs` is the one for this plan."""
    # Parts begin at multiples of CUT, which would be in the middle of a larger block.
    return plan.shape.tile_rows == _TILE[0] and fits(q, block_size, CUT)


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
    KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    LOG_BLOCK: gl.constexpr,
    WIDTH: gl.constexpr,
    TILE_M: gl.constexpr,
    TILE_N: gl.constexpr,
    WARPS: gl.constexpr,
):
    """As _shared_run's: one program a (KV head, record), r of the tile being a head of member r // GROUP."""
    DTYPE: gl.constexpr = q_ptr.dtype.element_ty
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, TILE_N, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, HEAD_DIM, 16])
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [WARPS, 1], [1, 0])
    OUT: gl.constexpr = gl.BlockedLayout([1, 4], [128 // HEAD_DIM, HEAD_DIM // 4], [WARPS, 1], [1, 0])
    kv_head, record = gl.program_id(0), shared_ptr + gl.program_id(1) * WIDTH
    first, count, line = gl.load(record), gl.load(record + 1), gl.load(record + 2).to(gl.int64)
    begin, end, part = gl.load(record + 3), gl.load(record + 4), gl.load(record + 5)
    if first < 0:
        return
    row = gl.arange(0, TILE_M, layout=gl.SliceLayout(1, COPY))
    dim = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, COPY))
    live = row // GROUP < count
    query = gl.load(members_ptr + first + row // GROUP, mask=live, other=0).to(gl.int64)
    q_place = query * q_row + (kv_head * GROUP + row % GROUP) * q_head
    q = gl.load(q_ptr + q_place[:, None] + dim[None, :], mask=live[:, None], other=0.0)
    Q_TILE: gl.constexpr = gl.NVMMASharedLayout.get_default_for([TILE_M, HEAD_DIM], DTYPE)
    q_smem = gl.allocate_shared_memory(DTYPE, [TILE_M, HEAD_DIM], Q_TILE, q)
    k_ptr = kv_ptr + kv_head.to(gl.int64) * (BLOCK_SIZE * HEAD_DIM)
    full = begin + (end - begin) // TILE_N * TILE_N
    last = gl.full([TILE_M], 0, gl.int32, layout=gl.SliceLayout(1, SCORES)) + (end - 1)
    sums, top, total = attend_pages(
        q_smem,
        k_ptr,
        k_ptr + KV_HEADS * BLOCK_SIZE * HEAD_DIM,
        tables_ptr + line * table_line,
        begin,
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
    sums = gl.convert_layout(sums / gl.convert_layout(total, gl.SliceLayout(1, SUMS))[:, None], OUT)
    lse = gl.convert_layout(top + gl.log2(total), gl.SliceLayout(1, OUT))
    row = gl.arange(0, TILE_M, layout=gl.SliceLayout(1, OUT))
    dim = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, OUT))
    live = row // GROUP < count
    slot = gl.load(slots_ptr + first + row // GROUP, mask=live, other=0).to(gl.int64) + part
    place = slot * (KV_HEADS * GROUP) + kv_head * GROUP + row % GROUP
    gl.store(partial_ptr + place[:, None] * HEAD_DIM + dim[None, :], sums, mask=live[:, None])
    gl.store(lse_ptr + place, lse, mask=live)


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
        **constants(kv_heads, heads // kv_heads, head_dim, block_size, _TILE),
    )
