"""Root-mean-square normalisation, alone and with the residual addition before it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._dependent import await_inputs, dependent_launch
from ._launch import check_dtype, check_float, check_rows, check_same_device, check_shape, use_triton


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * weight.float()).to(x.dtype)


def rms_norm_residual_reference(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    summed = ((x.sum(0) if x.dim() == 3 else x) + residual).to(residual.dtype)
    return rms_norm_reference(summed, weight, eps), summed


@triton.jit(do_not_specialize=["rows"])
def _rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    summed_ptr,
    rows,
    inner,
    x_outer,
    x_inner,
    x_part,
    residual_row,
    eps,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PDL: tl.constexpr,
):
    """ROWS rows a program; row r of x lies at (r // inner) * x_outer + (r % inner) * x_inner, in each of its parts."""
    await_inputs(PDL)
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    live = (row < rows) & (column < COLUMNS)
    place = row // inner * x_outer + row % inner * x_inner + column
    x = tl.load(x_ptr + place, mask=live, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        x += tl.load(x_ptr + part * x_part + place, mask=live, other=0.0)
    if RESIDUAL:
        x += tl.load(residual_ptr + row * residual_row + column, mask=live, other=0.0).to(tl.float32)
        rounded = x.to(summed_ptr.dtype.element_ty)
        tl.store(summed_ptr + row * COLUMNS + column, rounded, mask=live)
        x = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / COLUMNS + eps)[:, None]
    weight = tl.load(weight_ptr + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * COLUMNS + column, x * scale * weight, mask=live)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Give x / sqrt(mean(x^2) + eps) * weight over the last dimension, in float32; contiguous, of its dtype.

    x is [..., H] with rows contiguous; its other dimensions may be strided, as q is in a fused projection.
    """
    check_float("x", x)
    check_rows("x", x)
    _check_weight(weight, x)
    if not use_triton(x):
        return rms_norm_reference(x, weight, eps)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    wide = x.unsqueeze(0) if x.dim() == 2 else x
    if wide.dim() != 3:
        wide = x.contiguous().view(1, -1, x.shape[-1])
    _launch_rms_norm(wide, None, weight, eps, out, None)
    return out


def rms_norm_residual(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(x + residual), x + residual) for x and residual [T, H]; the sum is rounded to residual's dtype first.

    x may also be the sum of float32 parts [P, T, H], as `linear_parts` gives them.
    """
    if x.dim() == 3:
        check_dtype("x", x, torch.float32)
    else:
        check_dtype("x", x, residual.dtype)
    check_float("residual", residual)
    check_shape("x", x, *([None] * x.dim()))
    check_rows("x", x)
    check_shape("residual", residual, *x.shape[-2:])
    check_rows("residual", residual)
    _check_weight(weight, x)
    check_same_device(x=x, residual=residual)
    if not use_triton(x):
        return rms_norm_residual_reference(x, residual, weight, eps)
    out, summed = (torch.empty_like(residual, memory_format=torch.contiguous_format) for _ in range(2))
    parts, part_stride = (x.shape[0], x.stride(0)) if x.dim() == 3 else (1, 0)
    rows = x[:1] if x.dim() == 3 else x.unsqueeze(0)
    _launch_rms_norm(rows, residual, weight, eps, out, summed, parts, part_stride)
    return out, summed


def _launch_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
    summed: torch.Tensor | None,
    parts: int = 1,
    part_stride: int = 0,
) -> None:
    """The rows of x [outer, inner, H] in order; out and summed are contiguous.

    x is the first of `parts`, which lie so many numbers apart.
    """
    outer, inner, columns = x.shape
    rows, width = outer * inner, triton.next_power_of_2(columns)
    if out.numel() == 0:
        return
    # Short rows, as of a head, share a program, unless that would leave the device idle.
    tile = max(1, min(1024 // width, triton.next_power_of_2(rows // 512 + 1)))
    _rms_norm_kernel[(triton.cdiv(rows, tile),)](
        x,
        residual,
        weight,
        out,
        summed,
        rows,
        inner,
        x.stride(0),
        x.stride(1),
        part_stride,
        0 if residual is None else residual.stride(0),
        eps,
        COLUMNS=columns,
        WIDTH=width,
        ROWS=tile,
        PARTS=parts,
        RESIDUAL=residual is not None,
        num_warps=max(1, min(16, tile * width // 512)),
        **dependent_launch(x),
    )


def _check_weight(weight: torch.Tensor, x: torch.Tensor) -> None:
    check_float("weight", weight)
    check_shape("weight", weight, x.shape[-1])
    check_rows("weight", weight)
    check_same_device(x=x, weight=weight)
