"""Counts a token that was just sampled, for `apply_penalties` of the step after."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._launch import check_contiguous, check_dtype, check_rows, check_same_device, check_shape, use_triton
from .apply_penalties import MOST_COUNTED

_BLOCK = 128


def count_tokens_reference(
    counts: torch.Tensor, counts_rows: torch.Tensor, ids: torch.Tensor, rows: torch.Tensor
) -> None:
    tokens = ids[rows]
    seen = counts[counts_rows, tokens]
    counts[counts_rows, tokens] = torch.where((seen & MOST_COUNTED) == MOST_COUNTED, seen, seen + 1)


@triton.jit(do_not_specialize=["num"])
def _count_kernel(
    counts_ptr, counts_rows_ptr, ids_ptr, rows_ptr, vocab, num, MOST_COUNTED: tl.constexpr, BLOCK: tl.constexpr
):
    """One program BLOCK rows."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num
    row = tl.load(rows_ptr + index, mask=inside, other=0)
    token = tl.load(ids_ptr + row, mask=inside, other=0)
    place = counts_ptr + tl.load(counts_rows_ptr + index, mask=inside, other=0) * vocab + token
    seen = tl.load(place, mask=inside, other=0).to(tl.int32)
    tl.store(place, (seen + 1).to(tl.int16), mask=inside & ((seen & MOST_COUNTED) != MOST_COUNTED))


def count_tokens(counts: torch.Tensor, counts_rows: torch.Tensor, ids: torch.Tensor, rows: torch.Tensor) -> None:
    """Adds one to counts [N, V] (int16; see `apply_penalties`) at each of counts_rows (int64 [P]), which differ.

    The token there is that of ids (int64 [S]) at the same place of rows (int64 [P]).
    """
    check_shape("counts", counts, None, None)
    check_dtype("counts", counts, torch.int16)
    check_contiguous("counts", counts)
    check_shape("ids", ids, None)
    check_shape("rows", rows, None)
    check_shape("counts_rows", counts_rows, rows.shape[0])
    integers = {"counts_rows": counts_rows, "ids": ids, "rows": rows}
    for name, tensor in integers.items():
        check_dtype(name, tensor, torch.int64)
        check_rows(name, tensor)
    check_same_device(counts=counts, **integers)
    num = rows.shape[0]
    if not use_triton(counts):
        count_tokens_reference(counts, counts_rows, ids, rows)
    elif num:
        _count_kernel[(triton.cdiv(num, _BLOCK),)](
            counts, counts_rows, ids, rows, counts.shape[1], num, MOST_COUNTED=MOST_COUNTED, BLOCK=_BLOCK, num_warps=4
        )
