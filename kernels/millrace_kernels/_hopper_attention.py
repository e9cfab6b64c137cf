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

#: For tests and measurements: whether these kernels take the place of the portable ones where they fit.
enabled = True


def fits(q: torch.Tensor, block_size: int, largest: int) -> bool:
    """Whether these kernels take q [.., Hq, D] over blocks of this size: a power of two, up to the largest."""
    return (
        enabled
        and is_hopper(q)
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.shape[-1] in (64, 128)
        and 16 <= block_size <= largest
        and block_size.bit_count() == 1
        # A row's head begins at a multiple of 16 bytes.
        and q.stride(0) % 8 == 0
        and q.stride(1) % 8 == 0
    )


@gluon.jit
def _load_pages(table_ptr, page, num_pages):
    return gl.load(table_ptr + page, mask=page < num_pages, other=0)


@gluon.jit
def _copy(smem, inner, pages, kv_block, lane, left, MASKED: gl.constexpr):
    """Begins to copy a tile of tokens; with MASKED those from `left` on are zeros, else anything."""
    # One instruction a page, where the compiler would multiply 64 bits by 64.
    eighth = gl.inline_asm_elementwise(
        "mul.wide.s32 $0, $1, $2;", "=l,r,r", [pages, kv_block // 8], dtype=gl.int64, is_pure=True, pack=1
    )
    pointers = inner + (eighth * 8)[:, None]
    if MASKED:
        async_copy.async_copy_global_to_shared(smem, pointers, mask=(lane < left)[:, None])
    else:
        async_copy.async_copy_global_to_shared(smem, pointers)


@gluon.jit
def _copies_are_there():
    """What was copied can be multiplied.

    The barrier that the compiler puts behind the wait also says that no warp still multiplies what was there before.
    """
    async_copy.wait_group(0)
    fence_async_shared()


@gluon.jit
def _weigh(scores, top, total, scale_log2):
    """(weights, their running largest score and sum, how the sums before shrink) of one tile's scores."""
    new_top = gl.maximum(top, gl.max(scores, 1) * scale_log2)
    decay = gl.exp2(top - new_top)
    weights = gl.exp2(scores * scale_log2 - new_top[:, None])
    total = total * decay + gl.sum(weights, 1)
    # The assembler would wait for the sums of products before the exponentials, which then had nothing to overlap
    # with. It moves nothing across a branch, even one that is never taken: a sum of weights is not negative.
    total = gl.inline_asm_elementwise(
        "{ .reg .pred never; setp.lt.f32 never, $1, 0f00000000; @never trap; mov.f32 $0, $1; }",
        "=f,f",
        [total],
        dtype=gl.float32,
        is_pure=False,
        pack=1,
    )
    return weights, new_top, total, decay


@gluon.jit
def attend_pages(
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
    pages = _load_pages(table_ptr, page, num_pages)
    next_pages = _load_pages(table_ptr + PAGES, page, num_pages - PAGES)
    _copy(keys.index(0), k_inner, pages, kv_block, lane, 0, False)
    async_copy.commit_group()
    _copy(values.index(0), v_inner, pages, kv_block, lane, end - begin, True)
    _copy(keys.index(1), k_inner, next_pages, kv_block, lane, 0, False)
    async_copy.commit_group()
    table_ptr += 2 * PAGES
    num_pages -= 2 * PAGES
    pages, next_pages = next_pages, _load_pages(table_ptr, page, num_pages)

    async_copy.wait_group(1)
    fence_async_shared()
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
        table_ptr += PAGES
        num_pages -= PAGES
        # `stage` has the values of the tile before this one, the other buffers this tile's keys.
        _copies_are_there()
        scoring = warpgroup_mma(q_smem, keys.index(1 - stage).permute((1, 0)), zero, use_acc=False, is_async=True)
        summing = warpgroup_mma(narrow, values.index(stage), sums, is_async=True)
        _copy(keys.index(stage), k_inner, next_pages, kv_block, lane, 0, False)
        _copy(values.index(1 - stage), v_inner, pages, kv_block, lane, end - start, True)
        async_copy.commit_group()
        pages, next_pages = next_pages, _load_pages(table_ptr, page, num_pages)
        scores = warpgroup_mma_wait(1, deps=[scoring])
        if start + TILE_N > full:
            scores = gl.where((start + column)[None, :] <= last[:, None], scores, float("-inf"))
        weights, top, total, decay = _weigh(scores, top, total, scale_log2)
        narrow = gl.convert_layout(weights.to(DTYPE), WEIGHTS)
        sums = warpgroup_mma_wait(0, deps=[summing])
        sums = sums * gl.convert_layout(decay, gl.SliceLayout(1, SUMS))[:, None]
        stage = 1 - stage
    _copies_are_there()
    sums = warpgroup_mma(narrow, values.index(stage), sums)
    return sums, top, total


def constants(kv_heads: int, group: int, head_dim: int, block_size: int, tile: tuple[int, int, int]) -> dict[str, int]:
    """What both kernels are compiled for; a tile has so many query rows, tokens, and warps, four a warp group."""
    tile_m, tile_n, warps = tile
    return {
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": block_size,
        "LOG_BLOCK": block_size.bit_length() - 1,
        "TILE_M": tile_m,
        "TILE_N": tile_n,
        "WARPS": warps,
        "num_warps": warps,
    }
