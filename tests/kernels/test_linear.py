from __future__ import annotations

import pytest
import torch

from kernel_cases import CUDA, DEVICE, DTYPES, INTERPRETED, assert_as_good, by_mode
from millrace_kernels import linear, linear_added, linear_parts, norm_gated_linear, norm_linear

#: rows, columns of the result, K
SHAPES = by_mode(
    gpu=[
        (1, 6144, 4096),
        (1, 100, 2050),
        (1, 7, 40),
        (3, 4096, 14336),
        (17, 100, 200),
        (64, 6144, 1024),
        (65, 30, 64),
        (100, 8192, 4096),
        (128, 8200, 2100),
        (40, 66000, 128),
    ],
    interpreter=[(1, 6, 2050), (1, 5, 40), (3, 70, 300), (17, 64, 128)],
    reference=[(1, 6, 2050), (3, 70, 300)],
)


class Case:
    """A row of every kind lies between others, so that whoever reads past one finds NaN."""

    def __init__(self, rows: int, columns: int, k: int, dtype: torch.dtype):
        self.x, self.residual = (_between_nan(torch.randn(rows, k), dtype) for _ in range(2))
        self.norm = _between_nan(torch.randn(1, k), dtype)[0]
        self.weight = _between_nan(torch.randn(columns, k) / k**0.5, dtype)
        self.bias = _between_nan(torch.randn(1, columns), dtype)[0]

    def exact(self, *, normed: bool, added: bool, biased: bool) -> torch.Tensor:
        """In float64, but with the sum rounded as it is handed on."""
        x = (self.x + self.residual if added else self.x).double()
        if normed:
            x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.norm.double()
        return torch.nn.functional.linear(x, self.weight.double(), self.bias.double() if biased else None)


def _between_nan(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    space = torch.full((values.shape[0] + 2, values.shape[1]), float("nan"), dtype=dtype, device=DEVICE)
    space[1:-1] = values.to(DEVICE, dtype)
    return space[1:-1]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_multiplies(shape: tuple[int, int, int], dtype: torch.dtype, biased: bool) -> None:
    case = Case(*shape, dtype)
    exact, bias = case.exact(normed=False, added=False, biased=biased), case.bias if biased else None
    assert_as_good(linear(case.x, case.weight, bias), exact, torch.nn.functional.linear(case.x, case.weight, bias))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 64, 2048)], ids=str)
def test_parts_add_up(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    case = Case(*shape, dtype)
    exact, plain = case.exact(normed=False, added=False, biased=False), linear(case.x, case.weight)
    parts = linear_parts(case.x, case.weight)
    if parts.dim() == 2:
        assert torch.equal(parts, plain)
    else:
        assert parts.dtype == torch.float32
        assert_as_good(parts.sum(0).to(dtype), exact, plain)
    if shape == (2, 64, 2048):
        assert (parts.dim() == 3) == (INTERPRETED or (CUDA and dtype != torch.float32))
    assert linear_parts(case.x, case.weight, case.bias).dim() == 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_parts_are_added_before_a_norm(parts: int, dtype: torch.dtype) -> None:
    case, pieces = Case(3, 70, 300, dtype), torch.randn(parts, 3, 300, device=DEVICE)
    whole = pieces.sum(0)
    for op in (norm_linear, norm_gated_linear):
        got, summed = op(pieces, case.residual, case.norm, case.weight, case.bias, 1e-5)
        assert summed.dtype == got.dtype == dtype
        assert_as_good(summed, whole.double() + case.residual.double(), (whole + case.residual).to(dtype))
        wanted = op(summed, torch.zeros_like(summed), case.norm, case.weight, case.bias, 1e-5)[0]
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "biased"), [(600, False), (600, True), (3, False)])
def test_a_residual_is_added_by_the_product_or_left_to_the_norm(rows: int, biased: bool, dtype: torch.dtype) -> None:
    case = Case(rows, 70, 90, dtype)
    bias = case.bias if biased else None
    residual = _between_nan(torch.randn(rows, 70), dtype)
    product = case.exact(normed=False, added=False, biased=biased)
    plain, exact = torch.nn.functional.linear(case.x, case.weight, bias) + residual, product + residual.double()
    x, rest = linear_added(case.x, residual, case.weight, bias)
    assert (rest is None) == (rows >= 512 and not biased)
    if rest is None:
        assert x.data_ptr() == residual.data_ptr()
        assert_as_good(x, exact, plain)
    else:
        assert rest is residual
        assert_as_good((x.sum(0) if x.dim() == 3 else x) + rest, exact, plain)
    with pytest.raises(ValueError, match="residual has shape"):
        linear_added(case.x.repeat(512, 1), residual, case.weight)


@pytest.mark.parametrize("k", [300, 2048])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_product_goes_where_it_is_wanted(dtype: torch.dtype, k: int) -> None:
    # The interpreter is slow: each kernel once with a bias and once without.
    biased = {1: [k == 300], 3: [k != 300]} if INTERPRETED else {n: [False, True] for n in (1, 3, 70)}
    for rows, kinds in biased.items():
        case = Case(rows, 70, k, dtype)
        for bias in (case.bias if kind else None for kind in kinds):
            space = torch.full((rows, 70), float("nan"), dtype=dtype, device=DEVICE)
            got, _ = norm_linear(case.x, None, case.norm, case.weight, bias, 1e-5, out=space)
            wanted, _ = norm_linear(case.x, None, case.norm, case.weight, bias, 1e-5)
            assert got is space
            torch.testing.assert_close(space, wanted)


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_normalises_before(shape: tuple[int, int, int], dtype: torch.dtype, added: bool) -> None:
    """The sum is that of torch bit for bit, and the inputs stay as they were."""
    case = Case(*shape, dtype)
    before = case.x.clone(), case.residual.clone()
    exact = case.exact(normed=True, added=added, biased=True)
    x = case.x + case.residual if added else case.x
    rounded = torch.nn.functional.rms_norm(x.float(), x.shape[1:], case.norm.float(), 1e-5).to(dtype)
    plain = torch.nn.functional.linear(rounded, case.weight, case.bias)
    residual = case.residual if added else None
    result, summed = norm_linear(case.x, residual, case.norm, case.weight, case.bias, 1e-5)
    assert_as_good(result, exact, plain)
    assert torch.equal(summed, x)
    assert torch.equal(case.x, before[0])
    assert torch.equal(case.residual, before[1])


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gates_behind(shape: tuple[int, int, int], dtype: torch.dtype, biased: bool) -> None:
    rows, columns, k = shape
    case = Case(rows, 2 * columns, k, dtype)
    bias = case.bias if biased else None
    gate, up = case.exact(normed=True, added=True, biased=biased).chunk(2, dim=-1)
    exact = torch.nn.functional.silu(gate) * up
    result, summed = norm_gated_linear(case.x, case.residual, case.norm, case.weight, bias, 1e-5)
    normed = torch.nn.functional.rms_norm(summed.float(), (k,), case.norm.float(), 1e-5).to(dtype)
    gate, up = torch.nn.functional.linear(normed, case.weight, bias).chunk(2, dim=-1)
    plain = torch.nn.functional.silu(gate) * up
    assert_as_good(result, exact, plain)
    assert torch.equal(summed, case.x + case.residual)


def test_strided_rows_and_no_rows() -> None:
    wide, weight = torch.randn(5, 2, 64, device=DEVICE), torch.randn(48, 64, device=DEVICE) / 8
    for x in (wide[:, 1], wide[:1, 1], wide[:0, 1]):
        torch.testing.assert_close(linear(x, weight), torch.nn.functional.linear(x, weight))


def test_wrong_arguments_are_named() -> None:
    x, weight, norm = (torch.zeros(*shape, device=DEVICE) for shape in ((2, 64), (6, 64), (64,)))
    with pytest.raises(ValueError, match="weight has shape"):
        linear(x, weight[:, :32])
    with pytest.raises(TypeError, match=r"weight is torch\.float16"):
        linear(x, weight.half())
    with pytest.raises(ValueError, match="bias has shape"):
        linear(x, weight, norm)
    with pytest.raises(ValueError, match="residual has shape"):
        norm_linear(x, x[:1], norm, weight, None, 1e-6)
    with pytest.raises(ValueError, match="norm has shape"):
        norm_linear(x, x, norm[:3], weight, None, 1e-6)
    with pytest.raises(TypeError, match=r"x, in parts, is torch\.float16"):
        norm_linear(x.half()[None], x, norm, weight, None, 1e-6)
    with pytest.raises(ValueError, match="out has shape"):
        norm_linear(x, x, norm, weight, None, 1e-6, out=x)
    with pytest.raises(ValueError, match="5 rows"):
        norm_gated_linear(x, x, norm, weight[:5], None, 1e-6)
