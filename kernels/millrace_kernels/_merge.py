"""Joins the partial results of a context that was read in parts."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._dependent import await_inputs, dependent_launch

#: Up to so many rows, a program merges one head and most parts at once; of more, several heads and few parts.
_FEW_ROWS = 16


@triton.jit(do_not_specialize=["merges_ptr"])
def _merge_kernel(
    partial_ptr,
    lse_ptr,
    merges_ptr,
    out_ptr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    PAD: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a (COLUMNS of a row, record): the mean of the row's partial results, weighted by 2^lse.

    A row's heads lie side by side; COLUMNS are those of one head or of several.
    """
    await_inputs(PDL)
    record = merges_ptr + tl.program_id(1) * WIDTH
    row, first, count = tl.load(record).to(tl.int64), tl.load(record + 1).to(tl.int64), tl.load(record + 2)
    if row < 0:
        return
    column = tl.program_id(0) * COLUMNS + tl.arange(0, PAD)
    in_row = tl.arange(0, PAD) < COLUMNS
    acc, total = tl.zeros([PAD], tl.float32), tl.zeros([PAD], tl.float32)
    top = tl.full([PAD], float("-inf"), tl.float32)
    for start in tl.range(0, count, PARTS):
        part = start + tl.arange(0, PARTS)
        live = (part < count)[:, None] & in_row[None, :]
        slot = (first + part)[:, None] * HEADS
        lse = tl.load(lse_ptr + slot + (column // HEAD_DIM)[None, :], mask=live, other=float("-inf"))
        partial = tl.load(partial_ptr + slot * HEAD_DIM + column[None, :], mask=live, other=0.0)
        new_top = tl.maximum(top, tl.max(lse, axis=0))
        # With no part in use, -inf minus -inf would be NaN.
        safe = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights, decay = tl.exp2(lse - safe[None, :]), tl.exp2(top - safe)
        acc = acc * decay + tl.sum(partial * weights, axis=0)
        total = total * decay + tl.sum(weights, axis=0)
        top = new_top
    merged = acc / tl.where(total > 0, total, 1.0)
    tl.store(out_ptr + row * (HEADS * HEAD_DIM) + column, merged.to(out_ptr.dtype.element_ty), mask=in_row)


def merge(partial: torch.Tensor, lse: torch.Tensor, merges: torch.Tensor, out: torch.Tensor, kv_heads: int) -> None:
    """Rows of out [S, Hq, D] from partial [slots, Hq, D] and lse [slots, Hq], as `merges` (see DecodePlan) says."""
    _, heads, head_dim = out.shape
    few = merges.shape[0] <= _FEW_ROWS
    columns = head_dim if few else heads // kv_heads * head_dim
    pad = triton.next_power_of_2(columns)
    _merge_kernel[(heads * head_dim // columns, merges.shape[0])](
        partial,
        lse,
        merges,
        out,
        HEADS=heads,
        HEAD_DIM=head_dim,
        COLUMNS=columns,
        PAD=pad,
        PARTS=32 if few else 4,
        WIDTH=merges.shape[1],
        num_warps=4 if few else max(1, min(8, pad // 128)),
        **dependent_launch(out),
    )
