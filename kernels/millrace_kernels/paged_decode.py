"""Attention of one query token a sequence over its paged context, as a plan cuts it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._attention import attend, load_tile
from ._dependent import await_inputs, dependent_launch, prefetch
from ._launch import check_dtype, check_queries, check_same_device, check_shape, multiprocessors, use_triton
from ._merge import merge
from ._shared_run import attend_shared
from .decode_plan import DecodePlan, PlanShape, plan_decode

_LOG2_E = 1.4426950408889634
#: Tiles of a task that are asked for while the kernel before still runs.
_AHEAD = 1


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


@triton.jit
def _with_other_slots(
    partial_ptr, lse_ptr, record, slot, head, member, dim, live, acc, top, total,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """(acc, total) of a task, to which the partial results of its row's other slots are added; see `attend`."""
    first, count = tl.load(record + 5).to(tl.int64), tl.load(record + 7)
    for start in tl.range(0, count, 4):
        for ahead in tl.static_range(4):
            other = first + start + ahead
            there = (start + ahead < count) & (other != slot)
            at = other * HEADS + head
            # Not through L1, which may hold what an earlier layer left there.
            lse = tl.load(lse_ptr + at, mask=(member < GROUP) & there, other=float("-inf"), cache_modifier=".cg")
            place = partial_ptr + at[:, None] * HEAD_DIM + dim[None, :]
            partial = tl.load(place, mask=live & there, other=0.0, cache_modifier=".cg")
            new_top = tl.maximum(top, lse)
            # Of an empty part and a slot that is not there, -inf minus -inf would be NaN.
            safe = tl.where(new_top == float("-inf"), 0.0, new_top)
            decay, weight = tl.exp2(top - safe), tl.exp2(lse - safe)
            acc = acc * decay[:, None] + partial * weight[:, None]
            total = total * decay + weight
            top = new_top
    return acc, total


@triton.jit
def _ask_for(
    head_ptr, table_ptr, begin, end, kv_block,
    KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Keys and values of a task's first AHEAD tokens go on their way into L2."""
    line: tl.constexpr = 128 // (head_ptr.dtype.element_ty.primitive_bitwidth // 8)
    token = tl.minimum(begin + tl.arange(0, AHEAD), end - 1)
    page = tl.load(table_ptr + token // BLOCK_SIZE).to(tl.int64)
    lines = tl.arange(0, triton.next_power_of_2((HEAD_DIM + line - 1) // line)) * line
    place = head_ptr + (page * kv_block + token % BLOCK_SIZE * HEAD_DIM)[:, None] + tl.minimum(lines, HEAD_DIM - 1)
    prefetch(place, PDL)
    prefetch(place + KV_HEADS * BLOCK_SIZE * HEAD_DIM, PDL)


# What changes from step to step is not specialised on: each new mix would be compiled in the middle of the work.
@triton.jit(do_not_specialize=["tables_ptr", "tasks_ptr", "table_line"])
def _paged_decode_kernel(
    q_ptr,
    kv_ptr,
    tables_ptr,
    tasks_ptr,
    out_ptr,
    partial_ptr,
    lse_ptr,
    arrivals_ptr,
    scale_log2,
    q_row,
    q_head,
    kv_block,
    table_line,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TASK_WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    AHEAD: tl.constexpr,
    MERGE: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a (KV head, task): all query heads of the group are the rows of one tile.

    A task with a slot gives the float32 partial result [slot, Hq, D] beside lse [slot, Hq], the base-2 logarithm of its
    weight; one without gives a row of out [S, Hq, D]. With MERGE, so does the last task of a row, of all its slots.
    """
    # Plan and block tables are there before a step's first kernel, so they and the cache's lines are asked for at once.
    kv_head, record = tl.program_id(0), tasks_ptr + tl.program_id(1) * TASK_WIDTH
    row, line = tl.load(record).to(tl.int64), tl.load(record + 1).to(tl.int64)
    begin, end, slot = tl.load(record + 2), tl.load(record + 3), tl.load(record + 4).to(tl.int64)
    head_ptr = kv_ptr + kv_head.to(tl.int64) * (BLOCK_SIZE * HEAD_DIM)
    table_ptr = tables_ptr + line * table_line
    if (row >= 0) & (end > begin):
        _ask_for(head_ptr, table_ptr, begin, end, kv_block, KV_HEADS, BLOCK_SIZE, HEAD_DIM, AHEAD, PDL)
    await_inputs(PDL)
    if row < 0:
        return
    member, dim = tl.arange(0, GROUP_PAD), tl.arange(0, DIM_PAD)
    head = kv_head * GROUP + member
    q_live = (member < GROUP)[:, None] & (dim < HEAD_DIM)[None, :]
    q = tl.load(q_ptr + row * q_row + head[:, None] * q_head + dim[None, :], mask=q_live, other=0.0)
    acc = tl.zeros([GROUP_PAD, DIM_PAD], tl.float32)
    top = tl.full([GROUP_PAD], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_PAD], tl.float32)
    for start in tl.range(begin, end, TILE):
        token = start + tl.arange(0, TILE)
        live = token < end
        k, v = load_tile(head_ptr, table_ptr, token, live, kv_block, KV_HEADS, BLOCK_SIZE, HEAD_DIM, DIM_PAD, True)
        acc, top, total = attend(q, k, v, live[None, :], acc, top, total, scale_log2, MASKED=True)

    HEADS: tl.constexpr = KV_HEADS * GROUP
    row_place = (row * HEADS + head)[:, None] * HEAD_DIM + dim[None, :]
    # An empty context has a total of zero and gives zeros.
    mean = acc / tl.where(total > 0, total, 1.0)[:, None]
    if slot < 0:
        tl.store(out_ptr + row_place, mean.to(out_ptr.dtype.element_ty), mask=q_live)
        return
    own, place = tl.load(record + 6), slot * HEADS + head
    if MERGE:
        arrived = own - 1
        arrival_ptr = arrivals_ptr + row * KV_HEADS + kv_head
        if own > 1:
            tl.store(partial_ptr + place[:, None] * HEAD_DIM + dim[None, :], mean, mask=q_live)
            tl.store(lse_ptr + place, top + tl.log2(total), mask=member < GROUP)
            # All threads' results are out before one of them says so.
            tl.debug_barrier()
            arrived = tl.atomic_add(arrival_ptr, 1, sem="acq_rel", scope="gpu")
        if arrived == own - 1:
            acc, total = _with_other_slots(
                partial_ptr, lse_ptr, record, slot, head, member, dim, q_live, acc, top, total, HEADS, GROUP, HEAD_DIM
            )
            merged = acc / tl.where(total > 0, total, 1.0)[:, None]
            tl.store(out_ptr + row_place, merged.to(out_ptr.dtype.element_ty), mask=q_live)
            tl.store(arrival_ptr, 0)
    else:
        tl.store(partial_ptr + place[:, None] * HEAD_DIM + dim[None, :], mean, mask=q_live)
        tl.store(lse_ptr + place, top + tl.log2(total), mask=member < GROUP)


def paged_decode(
    q: torch.Tensor,
    kv: torch.Tensor,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    scale: float,
    *,
    lines: torch.Tensor | None = None,
    plan: DecodePlan | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of q [S, Hq, D] over contexts of context_lens [S] (int32) tokens, the query's own included.

    kv is one layer's cache view. block_tables [L, M] (int32) lists blocks, and what it holds past a context is not
    read; `lines` [S] (int32) says which line is whose, None that line s is of row s. A context of 0 gives zeros.

    `plan` is of the same contexts and lines, and what kernels go by; rows that it does not name are not written. None
    makes one, for which the context lengths are read on the host. Plan and tables are read before the launch ahead of
    this one has ended, which therefore must not write them.
    """
    check_queries(q, kv, block_tables, out)
    seqs = q.shape[0]
    check_shape("context_lens", context_lens, seqs)
    check_dtype("context_lens", context_lens, torch.int32)
    tensors = {"q": q, "kv": kv, "block_tables": block_tables, "context_lens": context_lens}
    if lines is None:
        check_shape("block_tables", block_tables, seqs, None)
    else:
        check_shape("lines", lines, seqs)
        check_dtype("lines", lines, torch.int32)
        tensors["lines"] = lines
    check_same_device(**tensors)
    if not use_triton(q):
        tables = block_tables if lines is None else block_tables[lines.long()]
        result = paged_decode_reference(q, kv, tables, context_lens, scale)
        return result if out is None else out.copy_(result)
    if out is None:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
    if seqs:
        _launch_decode(q, kv, block_tables, plan or _plan(q, kv, context_lens, lines), scale, out)
    return out


def _plan(q: torch.Tensor, kv: torch.Tensor, context_lens: torch.Tensor, lines: torch.Tensor | None) -> DecodePlan:
    """Reads the lengths on the host."""
    lengths = context_lens.cpu().numpy()
    where = torch.arange(len(lengths)) if lines is None else lines.cpu()
    shape = PlanShape(len(lengths), kv.shape[2], q.shape[1] // kv.shape[2], multiprocessors(q))
    arrays = plan_decode(lengths, where.numpy(), shape)
    return DecodePlan.of(shape, {name: torch.from_numpy(array).to(q.device) for name, array in arrays.items()})


def _tiles(dim_pad: int, group_pad: int, itemsize: int) -> tuple[int, int, int]:
    """(TILE, num_warps, num_stages); on an H200 it was fastest that two programs fill a multiprocessor's memory."""
    row_bytes = dim_pad * itemsize
    tile = max(16, min(64, 16384 // row_bytes))
    return tile, 4 if row_bytes > 256 or group_pad > 16 or itemsize == 4 else 2, 2 if itemsize == 4 else 3


def _launch_decode(
    q: torch.Tensor, kv: torch.Tensor, block_tables: torch.Tensor, plan: DecodePlan, scale: float, out: torch.Tensor
) -> None:
    _, heads, head_dim = q.shape
    _, _, kv_heads, block_size, _ = kv.shape
    group, dim_pad = heads // kv_heads, max(16, triton.next_power_of_2(head_dim))
    group_pad = max(16, triton.next_power_of_2(group))
    tile, warps, stages = _tiles(dim_pad, group_pad, kv.element_size())
    partial = q.new_empty(plan.shape.slots, heads, head_dim, dtype=torch.float32)
    lse = q.new_empty(plan.shape.slots, heads, dtype=torch.float32)
    if plan.shared is not None:
        attend_shared(q, kv, block_tables, plan, scale * _LOG2_E, partial, lse)
    _paged_decode_kernel[(kv_heads, plan.tasks.shape[0])](
        q,
        kv,
        block_tables,
        plan.tasks,
        out,
        partial,
        lse,
        plan.arrivals,
        scale * _LOG2_E,
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
        TASK_WIDTH=plan.tasks.shape[1],
        TILE=tile,
        AHEAD=_AHEAD * tile,
        MERGE=plan.shape.merges_in_place,
        num_warps=warps,
        num_stages=stages,
        **dependent_launch(q),
    )
    if plan.merges is not None and plan.merges.shape[0]:
        merge(partial, lse, plan.merges, out, kv_heads)
