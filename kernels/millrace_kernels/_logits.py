"""Blocks of logits as every op on them takes them: float32, a NaN as -inf, an infinity as the largest number."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

FINITE = torch.finfo(torch.float32).max


def clean_logits(logits: torch.Tensor) -> torch.Tensor:
    """What load_logits loads, of whole rows."""
    return logits.float().nan_to_num(nan=-torch.inf, posinf=FINITE, neginf=-torch.inf)


@triton.jit
def load_logits(row_ptr, ids, vocab, FINITE: tl.constexpr):
    x = tl.load(row_ptr + ids, mask=ids < vocab, other=float("-inf")).to(tl.float32)
    return tl.minimum(tl.where(x == x, x, float("-inf")), FINITE)
