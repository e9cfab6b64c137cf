"""The product of one row and a weight matrix, with the norm before and the gate behind: weights are read once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._dependent import await_inputs, dependent_launch


@triton.jit
def _load_tile(ptr, column, k, COLUMNS: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """Weights [BLOCK_N, BLOCK_K], zero where there are none. Nobody reads them again in this step."""
    if COLUMNS % BLOCK_N == 0 and K % BLOCK_K == 0:
        tile = tl.load(ptr, eviction_policy="evict_first")
    else:
        tile = tl.load(ptr, mask=(column < COLUMNS) & (k < K), other=0.0, eviction_policy="evict_first")
    return tile.to(tl.float32)


@triton.jit
def _gemv_kernel(
    x_ptr,
    residual_ptr,
    norm_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    summed_ptr,
    eps,
    COLUMNS: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NORM: tl.constexpr,
    ADD: tl.constexpr,
    GATED: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK_N columns of the result a program. BLOCK_K spans the warps, so that the row is laid out as the weights are.

    The sum of squares for the norm is taken on the way, and scales the result at the end. GATED: weights are
    [2 * COLUMNS, K], gates and then values.
    """
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    k = tl.arange(0, BLOCK_K)[None, :]
    weights = weight_ptr + column.to(tl.int64) * K
    below = weights + COLUMNS * K if GATED else weights
    tile = _load_tile(weights + k, column, k, COLUMNS, K, BLOCK_N, BLOCK_K)
    value_tile = tile
    if GATED:
        value_tile = _load_tile(below + k, column, k, COLUMNS, K, BLOCK_N, BLOCK_K)
    await_inputs(PDL)

    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    value_acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    square = tl.zeros([1, BLOCK_K], tl.float32)
    for start in tl.static_range(0, K, BLOCK_K):
        at = start + k
        if start > 0:
            tile = _load_tile(weights + at, column, at, COLUMNS, K, BLOCK_N, BLOCK_K)
            if GATED:
                value_tile = _load_tile(below + at, column, at, COLUMNS, K, BLOCK_N, BLOCK_K)
        x = tl.load(x_ptr + at, mask=at < K, other=0.0).to(tl.float32)
        if ADD:
            x += tl.load(residual_ptr + at, mask=at < K, other=0.0).to(tl.float32)
            rounded = x.to(summed_ptr.dtype.element_ty)
            tl.store(summed_ptr + at, rounded, mask=(at < K) & (tl.program_id(0) == 0))
            x = rounded.to(tl.float32)
        if NORM:
            square += x * x
            x *= tl.load(norm_ptr + at, mask=at < K, other=0.0).to(tl.float32)
        acc += tile * x
        if GATED:
            value_acc += value_tile * x

    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = row < COLUMNS
    result, value = tl.sum(acc, axis=1), tl.sum(value_acc, axis=1)
    if NORM:
        scale = tl.rsqrt(tl.sum(square) / K + eps)
        result *= scale
        value *= scale
    if BIAS:
        result += tl.load(bias_ptr + row, mask=live, other=0.0).to(tl.float32)
        if GATED:
            value += tl.load(bias_ptr + COLUMNS + row, mask=live, other=0.0).to(tl.float32)
    if GATED:
        result = result / (1.0 + tl.exp(-result)) * value
    tl.store(out_ptr + row, result, mask=live)


def _blocks(columns: int, k: int, gated: bool) -> tuple[int, int, int]:
    """(BLOCK_N, BLOCK_K, num_warps): what was fastest on an H200."""
    block_n = 2 if gated or columns <= 2048 else 8 if columns >= 65536 else 4
    longest = 512 if gated else 2048 if k >= 4096 else 1024
    block_k = max(16, min(longest, triton.next_power_of_2(k)))
    return block_n, block_k, max(1, block_k // 256)


def gemv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    residual: torch.Tensor | None = None,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    out: torch.Tensor | None = None,
    blocks: tuple[int, int, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(result [1, N], x + residual) of x [1, K] and weight [N, K], [2 * N, K] when gated; contiguous, checked."""
    k, columns = weight.shape[1], weight.shape[0] // (2 if gated else 1)
    out = x.new_empty(1, columns) if out is None else out
    summed = x if residual is None else torch.empty_like(x)
    block_n, block_k, warps = blocks or _blocks(columns, k, gated)
    _gemv_kernel[(triton.cdiv(columns, block_n),)](
        x,
        residual,
        norm,
        weight,
        bias,
        out,
        summed,
        eps,
        COLUMNS=columns,
        K=k,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        NORM=norm is not None,
        ADD=residual is not None,
        GATED=gated,
        BIAS=bias is not None,
        num_warps=warps,
        **dependent_launch(x),
    )
    return out, summed
