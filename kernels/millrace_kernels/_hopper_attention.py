"""Attention of a tile of rows over pages, for Hopper: one warp group loads, two multiply.

While one of the two weighs scores, the other has the tensor cores; they share no barrier and so fall into turns. Within
one, the weighted sum of a tile of tokens is under way with the scores of the next. After FlashAttention-3
(arXiv:2407.08608, sections 3.1 and 3.2).
"""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ._dependent import is_hopper

#: For tests and measurements: whether these kernels take the place of the portable ones where they fit.
enabled = True

#: Query rows of a program, half of them each group's that multiplies; tokens of a tile.
TILE_M, TILE_N = 128, 128
#: Tiles of keys and of values that are there at once.
_STAGES = 2
#: Registers a thread of the second group that multiplies, and of the one that loads; the first has the rest.
_REGISTERS = 216, 72


def fits(q: torch.Tensor, kv: torch.Tensor, largest: int) -> bool:
    """Whether these kernels take q [T, Hq, D] over kv [.., Hkv, B, D], B a power of two and `largest` at most."""
    block_size = kv.shape[-2]
    return (
        enabled
        and is_hopper(q)
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.shape[-1] in (64, 128)
        and 16 <= block_size <= largest
        and block_size.bit_count() == 1
        # A row's head and a block begin at multiples of 16 bytes.
        and q.stride(0) % 8 == 0
        and q.stride(1) % 8 == 0
        and kv.stride(0) % 8 == 0
    )


def constants(kv_heads: int, group: int, head_dim: int, block_size: int) -> dict[str, int]:
    """What both kernels are compiled for."""
    return {
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": block_size,
        "LOG_BLOCK": block_size.bit_length() - 1,
        "ROWS": TILE_M // 2,
        "TILE_N": TILE_N,
        "STAGES": _STAGES,
        "SECOND": _REGISTERS[0],
        "LOADER": _REGISTERS[1],
        "num_warps": 4,
    }


@gluon.jit
def allocate_tiles(DTYPE: gl.constexpr, TILE_N: gl.constexpr, HEAD_DIM: gl.constexpr, STAGES: gl.constexpr):
    """(keys, values, barriers: keys are there, values are, keys are done with, values are) of so many tiles."""
    TILE: gl.constexpr = gl.NVMMASharedLayout.get_default_for([TILE_N, HEAD_DIM], DTYPE)
    keys = gl.allocate_shared_memory(DTYPE, [STAGES, TILE_N, HEAD_DIM], TILE)
    values = gl.allocate_shared_memory(DTYPE, [STAGES, TILE_N, HEAD_DIM], TILE)
    k_there = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_there = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_done = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_done = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        # Each thread that loads arrives when its copies have; of a group that multiplies, one does.
        mbarrier.init(k_there.index(stage), count=128)
        mbarrier.init(v_there.index(stage), count=128)
        mbarrier.init(k_done.index(stage), count=2)
        mbarrier.init(v_done.index(stage), count=2)
    gl.thread_barrier()
    return keys, values, k_there, v_there, k_done, v_done


@gluon.jit
def _load_pages(table_ptr, page, num_pages):
    return gl.load(table_ptr + page, mask=page < num_pages, other=0)


@gluon.jit
def _place(inner, pages, kv_block):
    # One instruction a page, where the compiler would multiply 64 bits by 64.
    eighth = gl.inline_asm_elementwise(
        "mul.wide.s32 $0, $1, $2;", "=l,r,r", [pages, kv_block // 8], dtype=gl.int64, is_pure=True, pack=1
    )
    return inner + (eighth * 8)[:, None]


@gluon.jit
def load_tiles(
    tiles,
    k_ptr,
    v_ptr,
    table_ptr,
    begin,
    end,
    kv_block,
    TILE_N: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    LOG_BLOCK: gl.constexpr,
    STAGES: gl.constexpr,
):
    """What the group does that loads the tokens begin..end; `begin` is a multiple of the block size.

    Of a tile's tokens from `end` on, values are zeros and keys are anything.
    """
    keys, values, k_there, v_there, k_done, v_done = tiles
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [4, 1], [1, 0])
    PAGES: gl.constexpr = TILE_N // BLOCK_SIZE
    lane = gl.arange(0, TILE_N, layout=gl.SliceLayout(1, COPY))
    dim = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, COPY))
    # Masks and shifts: the compiler then sees that a thread's rows have the same place in each page.
    inner = ((lane & (BLOCK_SIZE - 1)) * HEAD_DIM)[:, None] + dim[None, :]
    page = lane >> LOG_BLOCK
    table_ptr += begin // BLOCK_SIZE
    num_pages = (end - begin + BLOCK_SIZE - 1) // BLOCK_SIZE
    pages = _load_pages(table_ptr, page, num_pages)
    stage = 0
    turn = 1
    for start in range(begin, end, TILE_N):
        table_ptr += PAGES
        num_pages -= PAGES
        next_pages = _load_pages(table_ptr, page, num_pages)
        mbarrier.wait(k_done.index(stage), turn)
        async_copy.async_copy_global_to_shared(keys.index(stage), _place(k_ptr + inner, pages, kv_block))
        async_copy.mbarrier_arrive(k_there.index(stage), increment_count=False)
        mbarrier.wait(v_done.index(stage), turn)
        live = (lane < end - start)[:, None]
        async_copy.async_copy_global_to_shared(values.index(stage), _place(v_ptr + inner, pages, kv_block), mask=live)
        async_copy.mbarrier_arrive(v_there.index(stage), increment_count=False)
        pages = next_pages
        stage += 1
        if stage == STAGES:
            stage = 0
            turn ^= 1
    # What was copied is waited for where it is used; this keeps the group's warps together until all is under way.
    async_copy.wait_group(0)


@gluon.jit
def attend_tiles(
    q_smem,
    tiles,
    begin,
    full,
    end,
    last,
    scale_log2,
    DTYPE: gl.constexpr,
    ROWS: gl.constexpr,
    TILE_N: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    STAGES: gl.constexpr,
):
    """(sums of weighted values [ROWS, HEAD_DIM], largest scores in powers of two, sums of weights), over begin..end.

    Row r sees tokens up to last[r]; in tiles that end by `full` all rows see all tokens. Each row sees a token of the
    first tile.
    """
    keys, values, k_there, v_there, k_done, v_done = tiles
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE_N, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, SUMS, 2)
    column = gl.arange(0, TILE_N, layout=gl.SliceLayout(0, SCORES))

    mbarrier.wait(k_there.index(0), 0)
    fence_async_shared()
    zero = gl.zeros([ROWS, TILE_N], gl.float32, layout=SCORES)
    scores = warpgroup_mma(q_smem, keys.index(0).permute((1, 0)), zero, use_acc=False)
    mbarrier.arrive(k_done.index(0), count=1)
    if begin + TILE_N > full:
        scores = gl.where((begin + column)[None, :] <= last[:, None], scores, float("-inf"))
    top = gl.max(scores, 1) * scale_log2
    weights = gl.exp2(scores * scale_log2 - top[:, None])
    total = gl.sum(weights, 1)
    narrow = gl.convert_layout(weights.to(DTYPE), WEIGHTS)
    sums = gl.zeros([ROWS, HEAD_DIM], gl.float32, layout=SUMS)
    v_stage = 0
    v_turn = 0
    k_stage = 1
    k_turn = 0
    for start in range(begin + TILE_N, end, TILE_N):
        # This tile's keys, and the values of the tile before it.
        mbarrier.wait(v_there.index(v_stage), v_turn)
        mbarrier.wait(k_there.index(k_stage), k_turn)
        fence_async_shared()
        scoring = warpgroup_mma(q_smem, keys.index(k_stage).permute((1, 0)), zero, use_acc=False, is_async=True)
        summing = warpgroup_mma(narrow, values.index(v_stage), sums, is_async=True)
        scores = warpgroup_mma_wait(1, deps=[scoring])
        mbarrier.arrive(k_done.index(k_stage), count=1)
        if start + TILE_N > full:
            scores = gl.where((start + column)[None, :] <= last[:, None], scores, float("-inf"))
        new_top = gl.maximum(top, gl.max(scores, 1) * scale_log2)
        decay = gl.exp2(top - new_top)
        weights = gl.exp2(scores * scale_log2 - new_top[:, None])
        total = total * decay + gl.sum(weights, 1)
        top = new_top
        narrow = gl.convert_layout(weights.to(DTYPE), WEIGHTS)
        sums = warpgroup_mma_wait(0, deps=[summing])
        mbarrier.arrive(v_done.index(v_stage), count=1)
        sums = sums * gl.convert_layout(decay, gl.SliceLayout(1, SUMS))[:, None]
        v_stage = k_stage
        v_turn = k_turn
        k_stage += 1
        if k_stage == STAGES:
            k_stage = 0
            k_turn ^= 1
    mbarrier.wait(v_there.index(v_stage), v_turn)
    fence_async_shared()
    return warpgroup_mma(narrow, values.index(v_stage), sums), top, total
