"""The first half of a SwiGLU feed-forward layer of many rows as one kernel, for Hopper.

One program a multiprocessor goes through tiles of the result. In it a warp copies what the products need, as far ahead
as its ring of buffers reaches, and two warp groups multiply, each for half of a tile's rows. A tile of gates and the
one of values beside it are one product, whose halves meet in the same thread: only what they give together is written.
"""

from __future__ import annotations

import functools

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ._dependent import is_hopper
from ._launch import multiprocessors

#: Rows and columns of the result in a tile, and the part of K that a buffer of the ring holds.
_TILE = 128, 128, 64
#: Buffers in the ring: as many as shared memory has room for beside a tile of the result.
_STAGES = 4
#: Tiles of rows that go through the weight together, so that both lie in L2.
_GROUP = 8
#: Registers of a thread that multiplies and of one that copies; together 504 of two such and one other.
_REGISTERS = 240, 24

_DTYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}


#: Fewest rows of which this is mostly faster than the library's product and silu_mul on an H200, and tiles for each
#: multiprocessor: of fewer tiles, the last ones leave too much of the device idle.
_LEAST_ROWS, _LEAST_TILES = 1024, 2


def pays_gated(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `gated_linear` takes x [T, K] and weight [2 * I, K], and is the fastest way."""
    tiles = triton.cdiv(x.shape[0], _TILE[0]) * (weight.shape[0] // (2 * _TILE[1]))
    return x.shape[0] >= _LEAST_ROWS and takes_gated(x, weight) and tiles >= _LEAST_TILES * multiprocessors(x)


def takes_gated(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `gated_linear` can compute with x [T, K] and weight [2 * I, K]."""
    _, tile_n, tile_k = _TILE
    return (
        is_hopper(x)
        and x.dtype in _DTYPES
        and x.shape[0] > 0
        and weight.shape[0] > 0
        and weight.shape[0] % (2 * tile_n) == 0
        and weight.shape[1] % tile_k == 0
        and weight.is_contiguous()
        # What the copies ask of where rows begin.
        and x.stride(0) >= x.shape[1]
        and x.stride(0) % 8 == 0
        and x.data_ptr() % 16 == 0
        and weight.data_ptr() % 16 == 0
    )


@gluon.jit
def _place(tile, row_tiles, COLUMN_TILES: gl.constexpr, GROUP: gl.constexpr):
    """(tile of rows, tile of columns) of a tile: down the rows of a group, then on to the next columns."""
    group = tile // (GROUP * COLUMN_TILES)
    first = group * GROUP
    rows = gl.minimum(row_tiles - first, GROUP)
    inner = tile - first * COLUMN_TILES
    return first + inner % rows, inner // rows


@gluon.jit
def _load(
    x,
    weight,
    filled,
    freed,
    x_smem,
    weight_smem,
    row_tiles,
    STEPS: gl.constexpr,
    COLUMN_TILES: gl.constexpr,
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
):
    """The warp that copies: of each tile and each part of K the rows of x, of the gates, and of the values."""
    TILE_M: gl.constexpr = x.block_type.shape[0]
    TILE_N: gl.constexpr = weight.block_type.shape[0]
    TILE_K: gl.constexpr = x.block_type.shape[1]
    BYTES: gl.constexpr = x.block_type.nbytes + 2 * weight.block_type.nbytes
    halves = weight_smem._reinterpret(weight.dtype, [2 * STAGES, TILE_N, TILE_K], weight.layout)
    stage = 0
    phase = 1
    for tile in range(gl.program_id(0), row_tiles * COLUMN_TILES, gl.num_programs(0)):
        row, column = _place(tile, row_tiles, COLUMN_TILES, GROUP)
        for step in range(STEPS):
            mbarrier.wait(freed.index(stage), phase)
            here = filled.index(stage)
            mbarrier.expect(here, BYTES)
            tma.async_copy_global_to_shared(x, [row * TILE_M, step * TILE_K], here, x_smem.index(stage))
            tma.async_copy_global_to_shared(weight, [column * TILE_N, step * TILE_K], here, halves.index(2 * stage))
            tma.async_copy_global_to_shared(
                weight, [(COLUMN_TILES + column) * TILE_N, step * TILE_K], here, halves.index(2 * stage + 1)
            )
            stage += 1
            if stage == STAGES:
                stage = 0
                phase ^= 1


@gluon.jit
def _gated(gate, up):
    """silu(gate) * up, in the quickest instructions: they are good to about 22 bits, and the result keeps 11 at most.

    The compiler's own division and exponential take care of denormal numbers as well, which costs as much again.
    """
    return gl.inline_asm_elementwise(
        """{
        .reg .f32 t;
        mul.f32 t, $1, 0fBFB8AA3B;
        ex2.approx.ftz.f32 t, t;
        add.f32 t, t, 0f3F800000;
        rcp.approx.ftz.f32 t, t;
        mul.f32 t, t, $1;
        mul.f32 $0, t, $2;
        }""",
        "=f,f,f",
        [gate, up],
        dtype=gl.float32,
        is_pure=True,
        pack=1,
    )


@gluon.jit
def _multiply(
    out,
    filled,
    freed,
    x_smem,
    weight_smem,
    out_smem,
    row_tiles,
    HALF: gl.constexpr,
    STEPS: gl.constexpr,
    COLUMN_TILES: gl.constexpr,
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
):
    """A warp group that multiplies: the upper or lower half of each tile's rows."""
    ROWS: gl.constexpr = out.block_type.shape[0]
    TILE_N: gl.constexpr = out.block_type.shape[1]
    TILE_K: gl.constexpr = x_smem.shape[2]
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 2 * TILE_N, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE_N, 16])
    halves = x_smem._reinterpret(out.dtype, [2 * STAGES, ROWS, TILE_K], x_smem.layout)
    own = out_smem.index(HALF)
    stage = 0
    phase = 0
    before = 0
    for tile in range(gl.program_id(0), row_tiles * COLUMN_TILES, gl.num_programs(0)):
        sums = gl.zeros([ROWS, 2 * TILE_N], gl.float32, layout=SUMS)
        for step in range(STEPS):
            mbarrier.wait(filled.index(stage), phase)
            sums = warpgroup_mma(
                halves.index(2 * stage + HALF), weight_smem.index(stage).permute((1, 0)), sums, is_async=True
            )
            # The product before this one is done, so its buffer can be filled again.
            sums = warpgroup_mma_wait(1, deps=[sums])
            mbarrier.arrive(freed.index(before), count=1, pred=step > 0)
            before = stage
            stage += 1
            if stage == STAGES:
                stage = 0
                phase ^= 1
        sums = warpgroup_mma_wait(0, deps=[sums])
        mbarrier.arrive(freed.index(before), count=1)
        gate, up = sums.reshape([ROWS, 2, TILE_N]).permute([0, 2, 1]).split()
        result = gl.convert_layout(_gated(gate, up).to(out.dtype), OUT)
        row, column = _place(tile, row_tiles, COLUMN_TILES, GROUP)
        # The tile before has left shared memory.
        tma.store_wait(0)
        gl.thread_barrier()
        own.store(result)
        fence_async_shared()
        gl.thread_barrier()
        tma.async_copy_shared_to_global(out, [(2 * row + HALF) * ROWS, column * TILE_N], own)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["row_tiles"])
def _gated_linear_kernel(
    x,
    weight,
    out,
    row_tiles,
    STEPS: gl.constexpr,
    COLUMN_TILES: gl.constexpr,
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
    MULTIPLIER_REGISTERS: gl.constexpr,
    LOADER_REGISTERS: gl.constexpr,
):
    TILE_M: gl.constexpr = x.block_type.shape[0]
    TILE_N: gl.constexpr = weight.block_type.shape[0]
    TILE_K: gl.constexpr = x.block_type.shape[1]
    x_smem = gl.allocate_shared_memory(x.dtype, [STAGES, TILE_M, TILE_K], x.layout)
    weight_smem = gl.allocate_shared_memory(x.dtype, [STAGES, 2 * TILE_N, TILE_K], weight.layout)
    out_smem = gl.allocate_shared_memory(x.dtype, [2, TILE_M // 2, TILE_N], out.layout)
    filled = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    freed = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(filled.index(i), count=1)
        mbarrier.init(freed.index(i), count=2)
    fence_async_shared()
    gl.thread_barrier()
    gl.warp_specialize(
        [
            (
                _multiply,
                (out, filled, freed, x_smem, weight_smem, out_smem, row_tiles, 0, STEPS, COLUMN_TILES, GROUP, STAGES),
            ),
            (
                _multiply,
                (out, filled, freed, x_smem, weight_smem, out_smem, row_tiles, 1, STEPS, COLUMN_TILES, GROUP, STAGES),
            ),
            (
                _load,
                (x, weight, filled, freed, x_smem, weight_smem, row_tiles, STEPS, COLUMN_TILES, GROUP, STAGES),
            ),
        ],
        [4, 1],
        [MULTIPLIER_REGISTERS, LOADER_REGISTERS],
    )


@functools.cache
def _layout(rows: int, columns: int, dtype: torch.dtype) -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout.get_default_for([rows, columns], _DTYPES[dtype])


def _described(tensor: torch.Tensor, rows: int, columns: int) -> TensorDescriptor:
    layout = _layout(rows, columns, tensor.dtype)
    return TensorDescriptor(tensor, tensor.shape, tensor.stride(), [rows, columns], layout)


def gated_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """silu(x @ gates.T) * (x @ values.T) [T, I], of x and weight that `takes_gated`: I rows of gates, I of values.

    Gates and values stay in float32; only the result is rounded.
    """
    tile_m, tile_n, tile_k = _TILE
    rows, k = x.shape
    columns = weight.shape[0] // 2
    out = x.new_empty(rows, columns)
    row_tiles, column_tiles = triton.cdiv(rows, tile_m), columns // tile_n
    _gated_linear_kernel[(min(multiprocessors(x), row_tiles * column_tiles),)](
        _described(x, tile_m, tile_k),
        _described(weight, tile_n, tile_k),
        _described(out, tile_m // 2, tile_n),
        row_tiles,
        STEPS=k // tile_k,
        COLUMN_TILES=column_tiles,
        GROUP=_GROUP,
        STAGES=_STAGES,
        MULTIPLIER_REGISTERS=_REGISTERS[0],
        LOADER_REGISTERS=_REGISTERS[1],
        num_warps=4,
    )
    return out
