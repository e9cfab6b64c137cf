"""Attention of many sequences' queries over a run of blocks that they share, which is read once a tile of queries."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._attention import attend, load_tile
from ._dependent import await_inputs, dependent_launch
from ._hopper_shared_run import launch_shared_runs, takes_shared_runs
from .decode_plan import DecodePlan, PlanShape


@triton.jit(do_not_specialize=["tables_ptr", "shared_ptr", "members_ptr", "slots_ptr", "table_line"])
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
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a (KV head, record); row r of the tile is head r % GROUP of member r // GROUP.

    Gives partial [slot, Hq, D] and lse [slot, Hq], as the tasks of a decode with a slot do.
    """
    await_inputs(PDL)
    kv_head, record = tl.program_id(0), shared_ptr + tl.program_id(1) * WIDTH
    first, count, line = tl.load(record), tl.load(record + 1), tl.load(record + 2).to(tl.int64)
    begin, end, part = tl.load(record + 3), tl.load(record + 4), tl.load(record + 5)
    if first < 0:
        return
    row, dim = tl.arange(0, TILE_M), tl.arange(0, DIM_PAD)
    member, head = row // GROUP, kv_head * GROUP + row % GROUP
    live = member < count
    query = tl.load(members_ptr + first + member, mask=live, other=0).to(tl.int64)
    q_live = live[:, None] & (dim < HEAD_DIM)[None, :]
    q = tl.load(q_ptr + (query * q_row + head * q_head)[:, None] + dim[None, :], mask=q_live, other=0.0)
    head_ptr = kv_ptr + kv_head.to(tl.int64) * (BLOCK_SIZE * HEAD_DIM)
    table_ptr = tables_ptr + line * table_line
    acc = tl.zeros([TILE_M, DIM_PAD], tl.float32)
    top = tl.full([TILE_M], float("-inf"), tl.float32)
    total = tl.zeros([TILE_M], tl.float32)
    full = begin + (end - begin) // TILE_N * TILE_N
    for start in tl.range(begin, full, TILE_N):
        token = start + tl.arange(0, TILE_N)
        seen = token < full
        k, v = load_tile(head_ptr, table_ptr, token, seen, kv_block, KV_HEADS, BLOCK_SIZE, HEAD_DIM, DIM_PAD, False)
        acc, top, total = attend(q, k, v, seen[None, :], acc, top, total, scale_log2, MASKED=False)
    for start in tl.range(full, end, TILE_N):
        token = start + tl.arange(0, TILE_N)
        seen = token < end
        k, v = load_tile(head_ptr, table_ptr, token, seen, kv_block, KV_HEADS, BLOCK_SIZE, HEAD_DIM, DIM_PAD, True)
        acc, top, total = attend(q, k, v, seen[None, :], acc, top, total, scale_log2, MASKED=True)

    slot = tl.load(slots_ptr + first + member, mask=live, other=0).to(tl.int64) + part
    place = slot * (KV_HEADS * GROUP) + head
    tl.store(partial_ptr + place[:, None] * HEAD_DIM + dim[None, :], acc / total[:, None], mask=q_live)
    tl.store(lse_ptr + place, top + tl.log2(total), mask=live)


def attend_shared(
    q: torch.Tensor,
    kv: torch.Tensor,
    block_tables: torch.Tensor,
    plan: DecodePlan,
    scale_log2: float,
    partial: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    """The plan's shared runs, into the slots of partial [slots, Hq, D] and lse [slots, Hq] that it names."""
    assert plan.shared is not None
    if plan.shared.shape[0] == 0:
        return
    _, heads, head_dim = q.shape
    _, _, kv_heads, block_size, _ = kv.shape
    if takes_shared_runs(q, kv, plan):
        launch_shared_runs(q, kv, block_tables, plan, scale_log2, partial, lse)
        return
    dim_pad = max(16, triton.next_power_of_2(head_dim))
    tile_n, warps, stages = _tiles(plan.shape, dim_pad, kv.element_size())
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
        KV_HEADS=kv_heads,
        GROUP=heads // kv_heads,
        HEAD_DIM=head_dim,
        DIM_PAD=dim_pad,
        BLOCK_SIZE=block_size,
        WIDTH=plan.shared.shape[1],
        TILE_M=plan.shape.tile_rows,
        TILE_N=tile_n,
        num_warps=warps,
        num_stages=stages,
        **dependent_launch(q),
    )


def _tiles(shape: PlanShape, dim_pad: int, itemsize: int) -> tuple[int, int, int]:
    """(TILE_N, num_warps, num_stages), as measured on an H200."""
    if itemsize == 4:
        return (16, 4, 2) if dim_pad > 64 else (32, 4, 2)
    if dim_pad > 128:
        return 32, 8, 2
    # Where there are tiles for more than the device, two of four warps on a multiprocessor beat one of eight.
    many = shape.rows * shape.group * shape.kv_heads >= shape.tile_rows * shape.processors
    return (64, 4, 3) if shape.tile_rows <= 64 or many else (64, 8, 3)
