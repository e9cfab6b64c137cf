"""Linear layers, alone and behind a norm: kernels of their own for few rows, the library's product for many."""

from __future__ import annotations

import torch

from ._dependent import is_hopper
from ._gemv import gemv
from ._hopper_gated import gated_linear, pays_gated
from ._launch import (
    INTERPRETED,
    check_contiguous,
    check_dtype,
    check_float,
    check_rows,
    check_same_device,
    check_shape,
    use_triton,
)
from ._skinny import skinny, worthwhile
from .rms_norm import rms_norm, rms_norm_reference, rms_norm_residual, rms_norm_residual_reference
from .silu_mul import silu_mul, silu_mul_reference

#: Longest row whose norm every program of a product takes again, instead of a launch of its own.
_LONGEST_JOINED = 2048
#: Fewest rows whose residual sum a product takes along.
_LEAST_ADDED = 512


def linear_reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return torch.nn.functional.linear(x, weight, bias)


def norm_linear_reference(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    norm: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    if residual is None:
        return linear_reference(rms_norm_reference(x, norm, eps), weight, bias), x
    normed, summed = rms_norm_residual_reference(x, residual, norm, eps)
    return linear_reference(normed, weight, bias), summed


def norm_gated_linear_reference(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    norm: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    gate_up, summed = norm_linear_reference(x, residual, norm, weight, bias, eps)
    return silu_mul_reference(gate_up), summed


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Give x [T, K] times weight [N, K] transposed, plus bias [N]; accumulated in float32."""
    _check(x, weight, bias)
    if _is_row(x, weight, bias):
        return gemv(x, weight, bias)[0]
    return _product(x, weight, bias)


def linear_parts(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """linear(x, weight, bias), or float32 parts [P, T, N] whose sum it is, where that saves a launch.

    norm_linear, norm_gated_linear and rms_norm_residual take either as x.
    """
    _check(x, weight, bias)
    if bias is None and not _is_row(x, weight) and _are_few(x, weight):
        return skinny(x, weight, None, parts=True)
    return linear(x, weight, bias)


def linear_added(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """linear(x, weight, bias) and the residual [T, N] that is to be added, as norm_linear and its like take them.

    They are (the product or parts of it, the residual), or for many rows (their sum, None): the sum then stands where
    the residual stood, and the norm behind reads and writes half as much.
    """
    if bias is None and x.shape[0] >= _LEAST_ADDED:
        _check(x, weight, bias)
        check_shape("residual", residual, x.shape[0], weight.shape[0])
        check_dtype("residual", residual, x.dtype)
        check_same_device(x=x, residual=residual)
        return residual.addmm_(x, weight.t()), None
    return linear_parts(x, weight, bias), residual


def norm_linear(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    norm: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    *,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(linear(rms_norm(x + residual, norm)), x + residual) for x and residual [T, K]; without residual, x is the sum.

    With a residual, x may be what `linear_parts` gives. Of one row, the norm may stay in float32 where other numbers of
    rows round it. The product is put into `out` [T, N], if that is given.
    """
    _check(x, weight, bias, residual, norm)
    if out is not None:
        check_shape("out", out, x.shape[-2], weight.shape[0])
        check_dtype("out", out, weight.dtype)
        check_contiguous("out", out)
    joined = x.shape[-1] <= _LONGEST_JOINED
    if joined and _is_row(x, weight, bias, residual, norm):
        return gemv(x, weight, bias, residual=residual, norm=norm, eps=eps, out=out)
    normed, summed = _norm(x, residual, norm, eps)
    if _is_row(normed, weight, bias):
        return gemv(normed, weight, bias, out=out)[0], summed
    return _product(normed, weight, bias, out), summed


def norm_gated_linear(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    norm: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As norm_linear with weight [2 * I, K], and silu(first half) * second half of its rows: ([T, I], x + residual).

    Of few rows and of many, gates and values may stay in float32 where other numbers of rows round them.
    """
    _check(x, weight, bias, residual, norm)
    if weight.shape[0] % 2:
        raise ValueError(f"weight has {weight.shape[0]} rows; it needs an even number, gates and then values")
    joined = x.shape[-1] <= _LONGEST_JOINED
    if joined and _is_row(x, weight, bias, residual, norm):
        return gemv(x, weight, bias, residual=residual, norm=norm, eps=eps, gated=True)
    normed, summed = _norm(x, residual, norm, eps)
    if _is_row(normed, weight, bias):
        return gemv(normed, weight, bias, gated=True)[0], summed
    if _are_few(normed, weight, gated=True):
        return skinny(normed, weight, bias, gated=True), summed
    if bias is None and pays_gated(normed, weight):
        return gated_linear(normed, weight), summed
    return silu_mul(_product(normed, weight, bias)), summed


def _product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor | None = None
) -> torch.Tensor:
    if _are_few(x, weight):
        return skinny(x, weight, bias, out=out)
    if out is None:
        return linear_reference(x, weight, bias)
    if bias is not None:
        return torch.addmm(bias, x, weight.t(), out=out)
    return torch.mm(x, weight.t(), out=out)


def _norm(
    x: torch.Tensor, residual: torch.Tensor | None, norm: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return (rms_norm(x, norm, eps), x) if residual is None else rms_norm_residual(x, residual, norm, eps)


def _is_row(x: torch.Tensor, *others: torch.Tensor | None) -> bool:
    """Whether gemv takes these: one row, and nothing strided."""
    if x.dim() != 2 or x.shape[0] != 1 or not use_triton(x):
        return False
    return all(tensor is None or tensor.is_contiguous() for tensor in (x, *others))


def _are_few(x: torch.Tensor, weight: torch.Tensor, *, gated: bool = False) -> bool:
    """Whether skinny takes these. In float32 the tensor cores would round."""
    if x.shape[0] == 0 or not use_triton(x) or not weight.is_contiguous():
        return False
    columns, k = weight.shape[0] // (2 if gated else 1), weight.shape[1]
    if not worthwhile(columns, k, x.shape[0], gated):
        return False
    return INTERPRETED or (x.dtype != torch.float32 and is_hopper(x))


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None = None,
    norm: torch.Tensor | None = None,
) -> None:
    in_parts = residual is not None and x.dim() == 3
    check_float("x", x)
    check_shape("x", x, *([None] * (3 if in_parts else 2)))
    check_rows("x", x)
    check_shape("weight", weight, None, x.shape[-1])
    shapes = {
        "bias": (bias, (weight.shape[0],)),
        "residual": (residual, tuple(x.shape[-2:])),
        "norm": (norm, (x.shape[-1],)),
    }
    tensors = {"weight": weight}
    for name, (tensor, shape) in shapes.items():
        if tensor is not None:
            check_shape(name, tensor, *shape)
            check_rows(name, tensor)
            tensors[name] = tensor
    dtype = x.dtype
    if in_parts:
        check_dtype("x, in parts,", x, torch.float32)
        dtype = weight.dtype
    for name, tensor in tensors.items():
        check_dtype(name, tensor, dtype)
    check_same_device(x=x, **tensors)
