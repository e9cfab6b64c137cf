"""Root-mean-square normalisation, alone and with the residual addition before it."""

from __future__ import annotations

import torch

from ._launch import check_dtype, check_float, check_rows, check_same_device, check_shape


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * weight.float()).to(x.dtype)


def rms_norm_residual_reference(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    summed = x + residual
    return rms_norm_reference(summed, weight, eps), summed


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Give x / sqrt(mean(x^2) + eps) * weight over the last dimension, in float32; contiguous, of its dtype.

    x is [..., H] with rows contiguous; its other dimensions may be strided, as q is in a fused projection.
    """
    check_float("x", x)
    check_rows("x", x)
    _check_weight(weight, x)
    return rms_norm_reference(x, weight, eps)


def rms_norm_residual(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(x + residual), x + residual) for x and residual [T, H]; the sum is rounded to x's dtype first."""
    check_float("x", x)
    check_shape("x", x, None, None)
    check_rows("x", x)
    check_shape("residual", residual, *x.shape)
    check_dtype("residual", residual, x.dtype)
    check_rows("residual", residual)
    _check_weight(weight, x)
    check_same_device(x=x, residual=residual)
    return rms_norm_residual_reference(x, residual, weight, eps)


def _check_weight(weight: torch.Tensor, x: torch.Tensor) -> None:
    check_float("weight", weight)
    check_shape("weight", weight, x.shape[-1])
    check_rows("weight", weight)
    check_same_device(x=x, weight=weight)
