from __future__ import annotations

import pytest
import torch

from kernel_cases import DEVICE, DTYPES, assert_as_good, by_mode
from millrace_kernels import rms_norm, rms_norm_residual

SHAPES = by_mode(
    gpu=[(1, 4096), (513, 4096), (100, 1000), (3, 8191), (2000, 8, 128), (5, 3, 80), (7, 64)],
    interpreter=[(3, 1000), (5, 3, 80), (2, 2, 2, 64), (520, 64)],
    reference=[(3, 1000), (5, 3, 80), (2, 2, 2, 64)],
)


def plain(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_normalises(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = (torch.randn(*shape, device=DEVICE) * 3).to(dtype)
    weight = torch.randn(shape[-1], device=DEVICE).to(dtype)
    exact = plain(x.double(), weight.double(), 1e-6)
    result = rms_norm(x, weight, 1e-6)
    assert result.is_contiguous()
    assert_as_good(result, exact, exact.to(dtype))


def test_takes_heads_out_of_a_fused_projection() -> None:
    fused = torch.randn(9, 12, 64, device=DEVICE)
    q, weight = fused[:, 3:7], torch.randn(64, device=DEVICE)
    exact = plain(q.double(), weight.double(), 1e-5)
    assert_as_good(rms_norm(q, weight, 1e-5), exact, exact.float())


def test_eps_carries_rows_of_zeros() -> None:
    zeros = torch.zeros(2, 64, device=DEVICE)
    assert torch.equal(rms_norm(zeros, torch.ones(64, device=DEVICE), 1e-6), zeros)
    tiny = torch.full((1, 64), 1e-3, device=DEVICE)
    result = rms_norm(tiny, torch.ones(64, device=DEVICE), 3e-6)
    torch.testing.assert_close(result, torch.full_like(tiny, 0.5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [s for s in SHAPES if len(s) == 2], ids=str)
def test_adds_the_residual_first(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """The sum is that of torch bit for bit, and the inputs stay as they were."""
    x, residual = (torch.randn(*shape, device=DEVICE).to(dtype) for _ in range(2))
    weight = torch.randn(shape[-1], device=DEVICE).to(dtype)
    before = x.clone(), residual.clone()
    normed, summed = rms_norm_residual(x, residual, weight, 1e-6)
    assert torch.equal(summed, x + residual)
    exact = plain(summed.double(), weight.double(), 1e-6)
    assert_as_good(normed, exact, exact.to(dtype))
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])


def test_strided_rows_and_no_rows() -> None:
    x, residual = torch.randn(4, 2, 64, device=DEVICE).unbind(1)
    weight = torch.randn(64, device=DEVICE)
    normed, summed = rms_norm_residual(x, residual, weight, 1e-6)
    assert torch.equal(summed, x + residual)
    torch.testing.assert_close(normed, plain(x + residual, weight, 1e-6))
    assert rms_norm(x[:0], weight, 1e-6).shape == (0, 64)


def test_wrong_arguments_are_named() -> None:
    x, weight = torch.randn(2, 64, device=DEVICE), torch.ones(64, device=DEVICE)
    with pytest.raises(ValueError, match="weight has shape"):
        rms_norm(x, weight[:32], 1e-6)
    with pytest.raises(TypeError, match=r"x is torch\.float64"):
        rms_norm(x.double(), weight, 1e-6)
    with pytest.raises(TypeError, match=r"x is torch\.float32; it must be torch\.float16"):
        rms_norm_residual(x, x.half(), weight, 1e-6)
    with pytest.raises(ValueError, match="residual has shape"):
        rms_norm_residual(x, x[:1], weight, 1e-6)
