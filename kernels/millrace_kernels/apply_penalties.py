"""Penalties for tokens that occurred: repetition, frequency and presence, in vLLM's order and before the temperature.

What occurred is counted on the device (see `count_tokens`), so that a step needs no token that the host does not know.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._launch import check_contiguous, check_dtype, check_float, check_rows, check_same_device, check_shape, use_triton

#: In a count of a token, int16: the sign bit says that it is in the prompt, the others how often it was generated.
IN_PROMPT = -(2**15)
#: More often is counted as so often.
MOST_COUNTED = 2**15 - 1


def apply_penalties_reference(
    logits: torch.Tensor,
    rows: torch.Tensor,
    counts: torch.Tensor,
    counts_rows: torch.Tensor,
    repetition: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
) -> torch.Tensor:
    x, seen = logits[rows].float(), counts[counts_rows]
    generated = (seen & MOST_COUNTED).float()
    factor = repetition[:, None]
    x = torch.where(seen != 0, torch.where(x > 0, x / factor, x * factor), x)
    return x - frequency[:, None] * generated - torch.where(generated > 0, presence[:, None], 0.0)


@triton.jit
def _penalties_kernel(
    logits_ptr,
    rows_ptr,
    counts_ptr,
    counts_rows_ptr,
    repetition_ptr,
    frequency_ptr,
    presence_ptr,
    out_ptr,
    vocab,
    row_stride,
    MOST_COUNTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a block of a row."""
    index = tl.program_id(0).to(tl.int64)
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = ids < vocab
    row, counts_row = tl.load(rows_ptr + index), tl.load(counts_rows_ptr + index)
    x = tl.load(logits_ptr + row * row_stride + ids, mask=inside, other=0.0).to(tl.float32)
    seen = tl.load(counts_ptr + counts_row * vocab + ids, mask=inside, other=0).to(tl.int32)
    generated = (seen & MOST_COUNTED).to(tl.float32)
    factor, presence = tl.load(repetition_ptr + index), tl.load(presence_ptr + index)
    x = tl.where(seen != 0, tl.where(x > 0, tl.div_rn(x, factor), x * factor), x)
    x = x - tl.load(frequency_ptr + index) * generated - tl.where(generated > 0, presence, 0.0)
    tl.store(out_ptr + index * vocab + ids, x, mask=inside)


def apply_penalties(
    logits: torch.Tensor,
    rows: torch.Tensor,
    counts: torch.Tensor,
    counts_rows: torch.Tensor,
    repetition: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
) -> torch.Tensor:
    """Rows of logits [S, V] as float32 [P, V], the tokens that occurred made less likely (or more, by what is asked).

    rows and counts_rows (int64 [P]) are rows of logits and of counts [N, V] (int16; see IN_PROMPT). Of tokens in the
    prompt or generated, repetition, above 0, divides positive logits and multiplies others; frequency, times how often
    a token was generated, and presence are subtracted (float32 [P]). The logits stay as they are: half precision would
    swallow a small penalty of a large one.
    """
    check_float("logits", logits)
    check_shape("logits", logits, None, None)
    check_rows("logits", logits)
    check_shape("counts", counts, None, logits.shape[1])
    check_dtype("counts", counts, torch.int16)
    check_contiguous("counts", counts)
    places = {"rows": rows, "counts_rows": counts_rows}
    penalties = {"repetition": repetition, "frequency": frequency, "presence": presence}
    for name, tensor in (places | penalties).items():
        check_shape(name, tensor, rows.shape[0])
        check_dtype(name, tensor, torch.int64 if name in places else torch.float32)
        check_rows(name, tensor)
    check_same_device(logits=logits, counts=counts, **places, **penalties)
    if not use_triton(logits):
        return apply_penalties_reference(logits, rows, counts, counts_rows, repetition, frequency, presence)
    vocab = logits.shape[1]
    out = logits.new_empty(rows.shape[0], vocab, dtype=torch.float32)
    if out.numel() == 0:
        return out
    block = min(4096, triton.next_power_of_2(vocab))
    _penalties_kernel[(rows.shape[0], triton.cdiv(vocab, block))](
        logits,
        rows,
        counts,
        counts_rows,
        repetition,
        frequency,
        presence,
        out,
        vocab,
        logits.stride(0),
        MOST_COUNTED=MOST_COUNTED,
        BLOCK=block,
        num_warps=max(1, min(8, block // 512)),
    )
    return out
