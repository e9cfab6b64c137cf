"""Attention of a tile of rows over pages, for Hopper, with the schedule of instructions spelt out.

Triton waits for each product before it goes on. Here the weighted sum of one tile of tokens is under way while the
softmax of the next one is computed, as in FlashAttention-3 (arXiv:2407.08608, section 3.2).
"""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

from ._dependent import is_hopper
from .decode_plan import DecodePlan

#: Query rows of a tile, tokens of a tile, and warps: two warp groups share a tile.
TILE_M, TILE_N, WARPS = 128, 128, 8
#: Whether it takes the place of the portable kernels where it fits. Off until it has been measured beside them.
enabled = False


def fits(q: torch.Tensor, block_size: int) -> bool:
    """Whether these kernels take q [.., Hq, D] over blocks of this size."""
    return (
        enabled
        and is_hopper(q)
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.shape[-1] in (64, 128)
        and 16 <= block_size <= TILE_N
        # A row's head begins at a multiple of 16 bytes.
        and q.stride(0) % 8 == 0
        and q.stride(1) % 8 == 0
    )


@gluon.jit
def _pages(table_ptr, page, num_pages):
    return gl.load(table_ptr + page, mask=page < num_pages, other=0)


@gluon.jit
def _copy(smem, inner, pages, kv_block, lane, left, MASKED: gl.constexpr):
    """Begins to copy a tile of tokens; with MASKED those from `left` on are zeros, else anything."""
    pointers = inner + (pages.to(gl.int64) * kv_block)[:, None]
    if MASKED:
        async_copy.async_copy_global_to_shared(smem, pointers, mask=(lane < left)[:, None])
    else:
        async_copy.async_copy_global_to_shared(smem, pointers)


@gluon.jit
def _copies_are_there():
    """What was copied can be multiplied, and nobody multiplies what was there before the last wait for products."""
    async_copy.wait_group(0)
    fence_async_shared()
    gl.thread_barrier()


@gluon.jit
def _attend(
    q_smem,
    k_ptr,
    v_ptr,
    table_ptr,
    begin,
    full,
    end,
    last,
    kv_block,
    scale_log2,
    DTYPE: gl.constexpr,
    TILE_M: gl.constexpr,
    TILE_N: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    LOG_BLOCK: gl.constexpr,
    WARPS: gl.constexpr,
):
    """(sums of weighted values [TILE_M, HEAD_DIM], largest scores in powers of two, sums of weights), over begin..end.

    `begin` is a multiple of the block size. Row r sees tokens up to last[r]; in tiles that end by `full` all rows see
    all tokens. Each row sees a token of the first tile.
    """
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, TILE_N, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, HEAD_DIM, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, SUMS, 2)
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [WARPS, 1], [1, 0])
    TILE: gl.constexpr = gl.NVMMASharedLayout.get_default_for([TILE_N, HEAD_DIM], DTYPE)
    PAGES: gl.constexpr = TILE_N // BLOCK_SIZE
    keys = gl.allocate_shared_memory(DTYPE, [2, TILE_N, HEAD_DIM], TILE)
    values = gl.allocate_shared_memory(DTYPE, [2, TILE_N, HEAD_DIM], TILE)
    lane = gl.arange(0, TILE_N, layout=gl.SliceLayout(1, COPY))
    dim = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, COPY))
    column = gl.arange(0, TILE_N, layout=gl.SliceLayout(0, SCORES))
    # Masks and shifts: the compiler then sees that a thread's rows have the same place in each page.
    inner = ((lane & (BLOCK_SIZE - 1)) * HEAD_DIM)[:, None] + dim[None, :]
    k_inner, v_inner, page = k_ptr + inner, v_ptr + inner, lane >> LOG_BLOCK

    # Page numbers are asked for a tile before the copies that need them.
    table_ptr += begin // BLOCK_SIZE
    num_pages = (end - begin + BLOCK_SIZE - 1) // BLOCK_SIZE
    pages = _pages(table_ptr, page, num_pages)
    next_pages = _pages(table_ptr + PAGES, page, num_pages - PAGES)
    _copy(keys.index(0), k_inner, pages, kv_block, lane, 0, False)
    async_copy.commit_group()
    _copy(values.index(0), v_inner, pages, kv_block, lane, end - begin, True)
    _copy(keys.index(1), k_inner, next_pages, kv_block, lane, 0, False)
    async_copy.commit_group()
    pages = next_pages
    table_ptr += 2 * PAGES
    num_pages -= 2 * PAGES
    next_pages = _pages(table_ptr, page, num_pages)

    async_copy.wait_group(1)
    fence_async_shared()
    gl.thread_barrier()
    zero = gl.zeros([TILE_M, TILE_N], gl.float32, layout=SCORES)
    scores = warpgroup_mma(q_smem, keys.index(0).permute((1, 0)), zero, use_acc=False)
    if begin + TILE_N > full:
        scores = gl.where((begin + column)[None, :] <= last[:, None], scores, float("-inf"))
    top = gl.max(scores, 1) * scale_log2
    weights = gl.exp2(scores * scale_log2 - top[:, None])
    total = gl.sum(weights, 1)
    narrow = gl.convert_layout(weights.to(DTYPE), WEIGHTS)
    sums = gl.zeros([TILE_M, HEAD_DIM], gl.float32, layout=SUMS)
    stage = 0
    for start in range(begin + TILE_N, end, TILE_N):
        # `stage` has the values of the tile before this one, the other buffers this tile's keys.
        _copies_are_there()
        _copy(values.index(1 - stage), v_inner, pages, kv_block, lane, end - start, True)
        _copy(keys.index(stage), k_inner, next_pages, kv_block, lane, 0, False)
        async_copy.commit_group()
        pages = next_pages
        table_ptr += PAGES
        num_pages -= PAGES
        next_pages = _pages(table_ptr, page, num_pages)
        scoring = warpgroup_mma(q_smem, keys.index(1 - stage).permute((1, 0)), zero, use_acc=False, is_async=True)
        summing = warpgroup_mma(narrow, values.index(stage), sums, is_async=True)
        scores = warpgroup_mma_wait(1, deps=[scoring])
        if start + TILE_N > full:
            scores = gl.where((start + column)[None, :] <= last[:, None], scores, float("-inf"))
        new_top = gl.maximum(top, gl.max(scores, 1) * scale_log2)
        decay = gl.exp2(top - new_top)
        weights = gl.exp2(scores * scale_log2 - new_top[:, None])
        total = total * decay + gl.sum(weights, 1)
        top = new_top
        following = gl.convert_layout(weights.to(DTYPE), WEIGHTS)
        sums = warpgroup_mma_wait(0, deps=[summing])
        sums = sums * gl.convert_layout(decay, gl.SliceLayout(1, SUMS))[:, None]
        narrow = following
        stage = 1 - stage
    _copies_are_there()
    sums = warpgroup_mma(narrow, values.index(stage), sums)
    return sums, top, total


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
    sums, _, total = _attend(
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
    sums, top, total = _attend(
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
    """What paged_prefill computes; its arguments have been checked, and `fits`."""
    tokens, heads, head_dim = q.shape
    _, _, kv_heads, block_size, _ = kv.shape
    seqs, group = context_lens.shape[0], heads // kv_heads
    _prefill_kernel[(kv_heads, tokens * group // TILE_M + seqs)](
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
        **_constants(kv_heads, group, head_dim, block_size),
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
    """What _shared_run.attend_shared computes, of a plan whose tiles have TILE_M rows; `fits`."""
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
        **_constants(kv_heads, heads // kv_heads, head_dim, block_size),
    )


def _constants(kv_heads: int, group: int, head_dim: int, block_size: int) -> dict[str, int]:
    return {
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": block_size,
        "LOG_BLOCK": block_size.bit_length() - 1,
        "TILE_M": TILE_M,
        "TILE_N": TILE_N,
        "WARPS": WARPS,
        "num_warps": WARPS,
    }
