"""Inputs and yardsticks of the kernel tests: a poisoned paged cache, dense attention, and the one rule of tolerance."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from millrace_kernels._launch import INTERPRETED

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
#: Whether ops in this process run their kernels, not their references.
KERNELS = CUDA or INTERPRETED

if CUDA:
    DTYPES = [torch.float32, torch.bfloat16, torch.float16]
elif INTERPRETED:
    DTYPES = [torch.float32, torch.float16]  # the interpreter has no bfloat16 arithmetic
else:
    DTYPES = [torch.float32, torch.bfloat16]


def by_mode(*, gpu: list, interpreter: list, reference: list) -> list:
    """Parameters for the three ways in which the tests run; the interpreter is slow and gets few."""
    return gpu if CUDA else interpreter if INTERPRETED else reference


def assert_as_good(actual: torch.Tensor, exact: torch.Tensor, plain: torch.Tensor) -> None:
    """The error of `actual` is at most twice that of plain torch in the same dtype, and some units in the last place.

    exact is float64. The rule is FlashAttention's: it scales itself, so that no test chooses a tolerance.
    """
    assert actual.dtype == plain.dtype
    assert actual.shape == exact.shape
    if exact.numel() == 0:
        return
    error, allowed = (actual.double() - exact).abs(), 2 * (plain.double() - exact).abs().max()
    allowed += 4 * torch.finfo(actual.dtype).eps * exact.abs().max()
    assert torch.isfinite(actual).all(), f"{int((~torch.isfinite(actual)).sum())} of {actual.numel()} are not finite"
    worst = int(error.argmax())
    assert error.max() <= allowed, (
        f"off by {float(error.max()):.3e} at flat index {worst}; {float(allowed):.3e} is allowed"
    )


def dense_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal attention of q [n, Hq, D], the last n of the tokens of k and v [context, Hkv, D], in their dtype."""
    n, context, group = q.shape[0], k.shape[0], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1).transpose(0, 1), v.repeat_interleave(group, 1).transpose(0, 1)
    scores = q.transpose(0, 1) @ k.transpose(1, 2) * scale  # [Hq, n, context]
    future = torch.arange(context, device=q.device) > torch.arange(context - n, context, device=q.device)[:, None]
    return (scores.masked_fill(future, float("-inf")).softmax(-1) @ v).transpose(0, 1)


@dataclass(frozen=True)
class Paged:
    """Contexts in a paged cache, and the same as dense tensors."""

    kv: torch.Tensor
    block_tables: torch.Tensor
    context_lens: torch.Tensor
    keys: list[torch.Tensor]
    values: list[torch.Tensor]


def paged(
    contexts: list[int], kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype, *, spare_pages: int = 3
) -> Paged:
    """A cache whose every slot that holds no token is NaN, and whose tables hold nonsense past each context."""
    needed = [-(-n // block_size) for n in contexts]
    total = sum(needed) + spare_pages
    # The second of three layers, so that the view has gaps between its blocks.
    cache = torch.full((total, 3, 2, kv_heads, block_size, head_dim), float("nan"), dtype=dtype, device=DEVICE)
    # A kernel that reads past a context most likely reads page 0, which therefore belongs to nobody.
    kv, order = cache[:, 1], torch.randperm(total - 1) + 1
    tables = torch.full((len(contexts), max([*needed, 1]) + 2), -(2**31), dtype=torch.int32)
    keys, values, used = [], [], 0
    for seq, n in enumerate(contexts):
        pages = order[used : used + needed[seq]]
        used += needed[seq]
        tables[seq, : len(pages)] = pages.int()
        slots = torch.arange(n)
        page, offset = pages[slots // block_size].to(DEVICE), (slots % block_size).to(DEVICE)
        keys.append(torch.randn(n, kv_heads, head_dim, device=DEVICE).to(dtype))
        values.append(torch.randn(n, kv_heads, head_dim, device=DEVICE).to(dtype))
        kv[:, 0][page, :, offset] = keys[-1]
        kv[:, 1][page, :, offset] = values[-1]
    lens = torch.tensor(contexts, dtype=torch.int32, device=DEVICE)
    return Paged(kv, tables.to(DEVICE), lens, keys, values)
