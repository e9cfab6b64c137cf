"""Gates of many rows by the kernel for Hopper, whose parts only such a device has."""

from __future__ import annotations

import pytest
import torch

from kernel_cases import CUDA, assert_as_good
from millrace_kernels import _hopper_gated, norm_gated_linear
from millrace_kernels._hopper_gated import gated_linear, pays_gated, takes_gated
from millrace_kernels.linear import norm_gated_linear_reference

on_hopper = pytest.mark.skipif(
    not (CUDA and torch.cuda.get_device_capability()[0] == 9), reason="needs a CUDA device of capability 9"
)
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def _strided(rows: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows with NaN after each, before the first, and in a whole tile's place after the last."""
    space = torch.full((rows + 136, k + 24), float("nan"), dtype=dtype, device="cuda")
    space[8 : rows + 8, :k] = torch.randn(rows, k, device="cuda")
    return space[8 : rows + 8, :k]


@pytest.mark.gpu
@on_hopper
@DTYPES
@pytest.mark.parametrize(("columns", "k"), [(3072, 1024), (384, 4096), (3072, 4096), (128, 64)])
@pytest.mark.parametrize("rows", [1024, 1025, 1151, 2048])
def test_a_norm_and_gates(rows: int, columns: int, k: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hopper_gated, "_LEAST_TILES", 0)
    x, residual = (torch.randn(rows, k, device="cuda").to(dtype) for _ in range(2))
    weight = (torch.randn(2 * columns, k, device="cuda") * (2 / k**0.5)).to(dtype)
    norm = torch.randn(k, device="cuda").to(dtype)
    wide = (tensor.float() for tensor in (x, residual, norm, weight))
    exact, _ = norm_gated_linear_reference(*wide, None, 1e-5)
    plain, summed = norm_gated_linear_reference(x, residual, norm, weight, None, 1e-5)
    assert pays_gated(summed, weight)
    got, got_sum = norm_gated_linear(x, residual, norm, weight, None, 1e-5)
    assert_as_good(got, exact.double(), plain)
    assert torch.equal(got_sum, summed)


@pytest.mark.gpu
@on_hopper
@DTYPES
@pytest.mark.parametrize("rows", [1, 63, 65, 128, 300, 1025, 40_000])
def test_rows_that_are_strided_among_nan(rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile takes nothing of what is past its rows, and writes nothing there."""
    columns, k = 384, 192
    x, weight = _strided(rows, k, dtype), (torch.randn(2 * columns, k, device="cuda") / 7).to(dtype)
    gate, up = torch.nn.functional.linear(x.double(), weight.double()).chunk(2, dim=-1)
    exact = torch.nn.functional.silu(gate) * up
    gate, up = torch.nn.functional.linear(x, weight).chunk(2, dim=-1)
    plain = torch.nn.functional.silu(gate) * up
    assert takes_gated(x, weight)
    space = torch.full((rows + 136, columns), float("nan"), dtype=dtype, device="cuda")
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda tensor, *shape: space[8:][: shape[0]])
    assert_as_good(gated_linear(x, weight), exact, plain)
    assert space[:8].isnan().all()
    assert space[rows + 8 :].isnan().all()


@pytest.mark.gpu
@on_hopper
def test_gates_far_from_zero() -> None:
    """Where the exponential overflows or vanishes, the gate is open or closed."""
    gates = torch.tensor([-3e4, -200.0, -88.5, -20.0, 0.0, 20.0, 88.5, 200.0, 3e4], device="cuda").bfloat16()
    x = torch.zeros(len(gates), 64, device="cuda", dtype=torch.bfloat16)
    x[:, 0], x[:, 1] = gates, 3
    weight = torch.zeros(256, 64, device="cuda", dtype=torch.bfloat16)
    weight[:128, 0], weight[128:, 1] = 1, 1
    exact = torch.nn.functional.silu(gates.double()) * 3
    torch.testing.assert_close(gated_linear(x, weight)[:, 5].double(), exact, rtol=2**-8, atol=1e-30)


@pytest.mark.parametrize(
    ("taken", "x", "weight"),
    [
        (True, torch.zeros(40, 64), torch.zeros(256, 64)),
        (True, torch.zeros(40, 72)[:, :64], torch.zeros(256, 64)),
        (False, torch.zeros(40, 68)[:, :64], torch.zeros(256, 64)),
        (False, torch.zeros(40, 72)[:, 1:65], torch.zeros(256, 64)),
        (False, torch.zeros(0, 64), torch.zeros(256, 64)),
        (False, torch.zeros(40, 64), torch.zeros(384, 64)),
        (False, torch.zeros(40, 96), torch.zeros(256, 96)),
        (False, torch.zeros(40, 64), torch.zeros(256, 128)[:, :64]),
        (False, torch.zeros(40, 64), torch.zeros(256 * 64 + 1)[1:].view(256, 64)),
        (False, torch.zeros(1, 64).expand(40, 64), torch.zeros(256, 64)),
        (False, torch.zeros(40, 64), torch.zeros(0, 64)),
    ],
    ids=[
        "whole",
        "strided",
        "stride of 68",
        "begins at 1",
        "no rows",
        "192 columns",
        "K of 96",
        "strided weight",
        "weight at 1",
        "one row for all",
        "no weight",
    ],
)
def test_what_is_taken(monkeypatch: pytest.MonkeyPatch, x: torch.Tensor, weight: torch.Tensor, *, taken: bool) -> None:
    monkeypatch.setattr(_hopper_gated, "is_hopper", lambda tensor: True)
    spaces = (tensor.untyped_storage().nbytes() // 4 for tensor in (x, weight))
    x, weight = (
        torch.zeros(space, dtype=torch.bfloat16).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        for space, tensor in zip(spaces, (x, weight), strict=True)
    )
    assert takes_gated(x, weight) == taken
    assert not takes_gated(x.float(), weight.float())
    monkeypatch.setattr(_hopper_gated, "is_hopper", lambda tensor: False)
    assert not takes_gated(x, weight)


@pytest.mark.parametrize(
    ("rows", "columns", "pays"), [(1023, 14336, False), (1024, 14336, True), (1024, 4096, False), (1921, 2176, True)]
)
def test_few_rows_and_few_tiles_do_not_pay(
    monkeypatch: pytest.MonkeyPatch, rows: int, columns: int, *, pays: bool
) -> None:
    monkeypatch.setattr(_hopper_gated, "is_hopper", lambda tensor: True)
    monkeypatch.setattr(_hopper_gated, "multiprocessors", lambda tensor: 132)
    x, weight = (torch.empty(number, 64, dtype=torch.bfloat16) for number in (rows, 2 * columns))
    assert pays_gated(x, weight) == pays
