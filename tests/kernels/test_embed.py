from __future__ import annotations

import pytest
import torch

from kernel_cases import DEVICE, DTYPES
from millrace_kernels import embed


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [1, 80, 256, 1000])
def test_known_and_newest_ids_find_their_rows(columns: int, dtype: torch.dtype) -> None:
    weight = torch.randn(50, columns, device=DEVICE).to(dtype)
    newest = torch.tensor([7, 49, 0], device=DEVICE)
    ids = torch.tensor([3, -1, 0, 49, -2, -3, 12], device=DEVICE)
    assert torch.equal(embed(ids, newest, weight), weight[torch.tensor([3, 7, 0, 49, 49, 0, 12], device=DEVICE)])


def test_no_tokens_give_no_rows() -> None:
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    assert embed(none, torch.zeros(3, dtype=torch.int64, device=DEVICE), torch.zeros(5, 8, device=DEVICE)).shape == (
        0,
        8,
    )


def test_wrong_arguments_are_named() -> None:
    ids, newest, weight = (torch.zeros(n, dtype=torch.int64, device=DEVICE) for n in (4, 2, 6))
    with pytest.raises(TypeError, match=r"weight is torch\.int64"):
        embed(ids, newest, weight)
    with pytest.raises(TypeError, match=r"newest is torch\.int32"):
        embed(ids, newest.int(), torch.zeros(6, 8, device=DEVICE))
    with pytest.raises(ValueError, match="weight must be contiguous"):
        embed(ids, newest, torch.zeros(8, 6, device=DEVICE).t())
