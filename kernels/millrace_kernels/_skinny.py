"""The product of a few rows and a weight matrix, whose columns are the tall side of the tensor cores' tiles."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._dependent import await_inputs, dependent_launch, prefetch

#: Most rows that this is for; and behind long rows of weights, with a gate, which saves its launch.
MAX_ROWS, MAX_GATED_ROWS = 64, 128


@triton.jit
def _load_tile(ptr, column, k, COLUMNS: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    if COLUMNS % BLOCK_N == 0 and K % BLOCK_K == 0:
        tile = tl.load(ptr)
    else:
        tile = tl.load(ptr, mask=(column < COLUMNS) & (k < K), other=0.0)
    return tile


@triton.jit(do_not_specialize=["rows"])
def _skinny_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    rows,
    x_row,
    COLUMNS: tl.constexpr,
    K: tl.constexpr,
    ROWS_PAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    GATED: tl.constexpr,
    BIAS: tl.constexpr,
    AHEAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a (BLOCK_N columns, SPLIT_K of K). out is [rows, N], with several splits float32 [splits, rows, N].

    GATED: weights are [2 * COLUMNS, K], gates and then values.
    """
    begin = tl.program_id(1) * SPLIT_K
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    k = tl.arange(0, BLOCK_K)[None, :]
    weights = weight_ptr + column.to(tl.int64) * K
    below = weights + COLUMNS * K if GATED else weights
    if AHEAD > 0 and COLUMNS % BLOCK_N == 0 and K % SPLIT_K == 0:
        line: tl.constexpr = 128 // (weight_ptr.dtype.element_ty.primitive_bitwidth // 8)
        ahead = begin + tl.arange(0, AHEAD * BLOCK_K // line)[None, :] * line
        prefetch(weights + ahead, PDL)
        if GATED:
            prefetch(below + ahead, PDL)
    await_inputs(PDL)

    row = tl.arange(0, ROWS_PAD)[:, None]
    x_place = x_ptr + row.to(tl.int64) * x_row
    acc = tl.zeros([BLOCK_N, ROWS_PAD], tl.float32)
    value_acc = tl.zeros([BLOCK_N, ROWS_PAD], tl.float32)
    for start in tl.range(begin, tl.minimum(begin + SPLIT_K, K), BLOCK_K):
        at = start + k
        x = tl.trans(tl.load(x_place + at, mask=(row < rows) & (at < K), other=0.0))
        tile = _load_tile(weights + at, column, at, COLUMNS, K, BLOCK_N, BLOCK_K)
        acc = tl.dot(tile, x, acc, input_precision="ieee")
        if GATED:
            tile = _load_tile(below + at, column, at, COLUMNS, K, BLOCK_N, BLOCK_K)
            value_acc = tl.dot(tile, x, value_acc, input_precision="ieee")

    if BIAS:
        acc += tl.load(bias_ptr + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
        if GATED:
            value_acc += tl.load(bias_ptr + COLUMNS + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
    if GATED:
        acc = acc / (1.0 + tl.exp(-acc)) * value_acc
    to = tl.arange(0, ROWS_PAD)[None, :]
    out_row = (tl.program_id(1) * rows + to).to(tl.int64)
    tl.store(out_ptr + out_row * COLUMNS + column, acc, mask=(to < rows) & (column < COLUMNS))


@triton.jit(do_not_specialize=["rows"])
def _sum_kernel(
    partial_ptr, bias_ptr, out_ptr, rows, SPLITS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
    BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """WIDTH columns of one row of out a program: partial [SPLITS, rows, COLUMNS] added in order, and the bias."""
    await_inputs(PDL)
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    live = column < COLUMNS
    total = tl.zeros([WIDTH], tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(partial_ptr + (split * rows + row) * COLUMNS + column, mask=live, other=0.0)
    if BIAS:
        total += tl.load(bias_ptr + column, mask=live, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * COLUMNS + column, total, mask=live)


def worthwhile(columns: int, k: int, rows: int, gated: bool) -> bool:
    """Whether this is faster than the library's product, or as fast, as measured on an H200."""
    if rows > MAX_ROWS:
        return gated and k > 2048 and columns >= 8192 and rows <= MAX_GATED_ROWS
    return k <= 2048 or rows > 32 if gated else columns <= 4096 or columns >= 65536


def _blocks(columns: int, k: int, rows: int, gated: bool) -> tuple[int, int, int, int, int, int]:
    """(BLOCK_N, BLOCK_K, splits, num_warps, num_stages, AHEAD); the same for all rows that share a ROWS_PAD."""
    if gated:
        return (64, 64, 1, 4, 5, 4) if rows <= MAX_ROWS else (128, 64, 1, 8, 4, 2)
    if rows > 32 and columns >= 65536:
        return 128, 64, 1, 4, 5, 4
    splits, programs = 1, triton.cdiv(columns, 64)
    # Half of the device would idle; the sum over splits costs a launch.
    while k >= 2048 and k // (2 * splits) >= 512 and 2 * splits * programs <= 132:
        splits *= 2
    return 64, 128, splits, 4, 4, 2


def skinny(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    gated: bool = False,
    parts: bool = False,
    out: torch.Tensor | None = None,
    blocks: tuple[int, int, int, int, int, int] | None = None,
) -> torch.Tensor:
    """Give x [1 to MAX_GATED_ROWS, K] times weight [N, K], or [2 * N, K] when gated; checked, weights contiguous.

    With `parts`, and without a bias, the float32 parts [splits, T, N] of a product that was cut along K.
    """
    rows, k, columns = x.shape[0], weight.shape[1], weight.shape[0] // (2 if gated else 1)
    block_n, block_k, splits, warps, stages, ahead = blocks or _blocks(columns, k, rows, gated)
    split_k = triton.cdiv(triton.cdiv(k, splits), block_k) * block_k
    splits = triton.cdiv(k, split_k)
    partial = x.new_empty(splits, rows, columns, dtype=torch.float32) if splits > 1 else None
    if partial is None or not parts:
        out = x.new_empty(rows, columns) if out is None else out
    _skinny_kernel[(triton.cdiv(columns, block_n), splits)](
        x,
        weight,
        bias,
        out if partial is None else partial,
        rows,
        x.stride(0),
        COLUMNS=columns,
        K=k,
        ROWS_PAD=max(16, triton.next_power_of_2(rows)),
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        SPLIT_K=split_k,
        GATED=gated,
        BIAS=bias is not None and splits == 1,
        AHEAD=min(ahead, triton.next_power_of_2(split_k // block_k + 1) // 2),
        num_warps=warps,
        num_stages=stages,
        **dependent_launch(x),
    )
    if partial is not None and parts:
        return partial
    if partial is not None:
        width = min(1024, triton.next_power_of_2(columns))
        _sum_kernel[(rows, triton.cdiv(columns, width))](
            partial,
            bias,
            out,
            rows,
            SPLITS=splits,
            COLUMNS=columns,
            WIDTH=width,
            BIAS=bias is not None,
            num_warps=4,
            **dependent_launch(x),
        )
    assert out is not None
    return out
