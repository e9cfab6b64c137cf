"""A launch of a kernel that is to be timed, and what it must give before it is."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import torch

#: Given a number, so that launches take turns among copies of the large operand.
Work = Callable[[int], object]

#: Rows of a result that are looked at.
CHECKED_ROWS = 8


class Case(msgspec.Struct, frozen=True):
    """`ours` and torch's equivalent, where there is one, at `rows` rows or sequences."""

    kernel: str
    rows: int
    #: Bytes that one launch must move, in TB/s, or its operations, in TFLOP/s.
    amount: float
    unit: str
    ours: Work
    torchs: Work | None
    turns: int
    #: What is wrong with the first turn's result; "" when nothing is.
    wrong: Callable[[], str]


def difference(actual: torch.Tensor, function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> str:
    """How `actual` differs from the function of these tensors; "" when it is as good as torch in their dtype.

    The error may be twice torch's own, some units in the last place, and what another order of float32 sums and
    exponentials changes: torch's may happen to be nearly exact. All against the function in a wider dtype.
    """
    wide = torch.float64 if actual.dtype == torch.float32 else torch.float32
    exact = function(*(tensor.to(wide) for tensor in tensors))
    if actual.shape != exact.shape:
        return f"its shape is {list(actual.shape)}, not {list(exact.shape)}"
    broken = int((~torch.isfinite(actual)).sum())
    if broken:
        return f"{broken} of {actual.numel()} numbers are not finite"
    plain = function(*tensors)
    error = float((actual.to(wide) - exact).abs().max())
    allowed = 2 * float((plain.to(wide) - exact).abs().max())
    allowed += (4 * torch.finfo(actual.dtype).eps + 16 * torch.finfo(torch.float32).eps) * float(exact.abs().max())
    return "" if error <= allowed else f"off by {error:.2e}, where {allowed:.2e} is allowed"
