from __future__ import annotations

import pytest
import torch

from kernel_cases import DEVICE, DTYPES, assert_as_good, by_mode
from millrace_kernels import silu_mul

SHAPES = by_mode(
    gpu=[(1, 14336), (300, 14336), (17, 1001), (5, 3)],
    interpreter=[(3, 1500), (2, 3)],
    reference=[(3, 1500), (2, 3)],
)


def plain(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_gates(rows: int, columns: int, dtype: torch.dtype) -> None:
    gate_up = (torch.randn(rows, 2 * columns, device=DEVICE) * 4).to(dtype)
    assert_as_good(silu_mul(gate_up), plain(gate_up.double()), plain(gate_up))


def test_strided_rows_and_no_rows() -> None:
    gate_up = torch.randn(4, 3, 200, device=DEVICE)[:, 1]
    torch.testing.assert_close(silu_mul(gate_up), plain(gate_up))
    assert silu_mul(gate_up[:0]).shape == (0, 100)


def test_extreme_gates_stay_finite() -> None:
    gate_up = torch.tensor([[-80.0, 80.0, 0.0, 1.0, 1.0, 1.0]], device=DEVICE)
    torch.testing.assert_close(silu_mul(gate_up), torch.tensor([[0.0, 80.0, 0.0]], device=DEVICE))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="7 columns"):
        silu_mul(torch.zeros(2, 7, device=DEVICE))
    with pytest.raises(TypeError, match=r"gate_up is torch\.int64"):
        silu_mul(torch.zeros(2, 8, dtype=torch.int64, device=DEVICE))
