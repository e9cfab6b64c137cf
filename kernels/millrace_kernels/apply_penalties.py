"""Biases of given tokens, and penalties for those that occurred: repetition, frequency and presence, in vLLM's order.

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
    bias_ids: torch.Tensor | None = None,
    biases: torch.Tensor | None = None,
) -> torch.Tensor:
    x, seen = logits[rows].float(), counts[counts_rows]
    if bias_ids is not None and biases is not None:
        ids = bias_ids[counts_rows].long()
        row, place = (ids >= 0).nonzero(as_tuple=True)
        x[row, ids[row, place]] += biases[counts_rows][row, place]
    generated = (seen & MOST_COUNTED).float()
    factor = repetition[:, None]
    x = torch.where(seen != 0, torch.where(x > 0, x / factor, x * factor), x)
    return x - frequency[:, None] * generated - torch.where(generated > 0, presence[:, None], 0.0)


@triton.jit
def _penalise(x, seen, factor, frequency, presence, MOST_COUNTED: tl.constexpr):
    generated = (seen & MOST_COUNTED).to(tl.float32)
    x = tl.where(seen != 0, tl.where(x > 0, tl.div_rn(x, factor), x * factor), x)
    return x - frequency * generated - tl.where(generated > 0, presence, 0.0)


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
    factor, presence = tl.load(repetition_ptr + index), tl.load(presence_ptr + index)
    x = _penalise(x, seen, factor, tl.load(frequency_ptr + index), presence, MOST_COUNTED)
    tl.store(out_ptr + index * vocab + ids, x, mask=inside)


@triton.jit
def _biases_kernel(
    logits_ptr,
    rows_ptr,
    counts_ptr,
    counts_rows_ptr,
    repetition_ptr,
    frequency_ptr,
    presence_ptr,
    bias_ids_ptr,
    biases_ptr,
    out_ptr,
    vocab,
    row_stride,
    width,
    MOST_COUNTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row; writes the tokens that have a bias anew."""
    index = tl.program_id(0).to(tl.int64)
    row, counts_row = tl.load(rows_ptr + index), tl.load(counts_rows_ptr + index)
    place = tl.arange(0, BLOCK)
    ids = tl.load(bias_ids_ptr + counts_row * width + place, mask=place < width, other=-1)
    inside = ids >= 0
    x = tl.load(logits_ptr + row * row_stride + ids, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(biases_ptr + counts_row * width + place, mask=inside, other=0.0)
    seen = tl.load(counts_ptr + counts_row * vocab + ids, mask=inside, other=0).to(tl.int32)
    factor, presence = tl.load(repetition_ptr + index), tl.load(presence_ptr + index)
    x = _penalise(x, seen, factor, tl.load(frequency_ptr + index), presence, MOST_COUNTED)
    tl.store(out_ptr + index * vocab + ids, x, mask=inside)


def apply_penalties(
    logits: torch.Tensor,
    rows: torch.Tensor,
    counts: torch.Tensor,
    counts_rows: torch.Tensor,
    repetition: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
    bias_ids: torch.Tensor | None = None,
    biases: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rows of logits [S, V] as float32 [P, V], the tokens that occurred made less likely (or more, by what is asked).

    rows and counts_rows (int64 [P]) are rows of logits and of counts [N, V] (int16; see IN_PROMPT). Of tokens in the
    prompt or generated, repetition, above 0, divides positive logits and multiplies others; frequency, times how often
    a token was generated, and presence are subtracted (float32 [P]). The logits stay as they are: half precision would
    swallow a small penalty of a large one.

    Before all that, biases [N, W] (float32) are added to the logits of the tokens bias_ids [N, W] (int32; -1: none), in
    the rows counts_rows of both. The ids of a row differ.
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
    _check_biases(counts, bias_ids, biases)
    if not use_triton(logits):
        return apply_penalties_reference(
            logits, rows, counts, counts_rows, repetition, frequency, presence, bias_ids, biases
        )
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
    if bias_ids is not None and biases is not None:
        width = bias_ids.shape[1]
        _biases_kernel[(rows.shape[0],)](
            logits,
            rows,
            counts,
            counts_rows,
            repetition,
            frequency,
            presence,
            bias_ids,
            biases,
            out,
            vocab,
            logits.stride(0),
            width,
            MOST_COUNTED=MOST_COUNTED,
            BLOCK=triton.next_power_of_2(width),
            num_warps=4,
        )
    return out


def _check_biases(counts: torch.Tensor, ids: torch.Tensor | None, biases: torch.Tensor | None) -> None:
    if ids is None and biases is None:
        return
    if ids is None or biases is None:
        raise ValueError("bias_ids and biases go together; give both or neither")
    for name, tensor, dtype in (("bias_ids", ids, torch.int32), ("biases", biases, torch.float32)):
        check_shape(name, tensor, counts.shape[0], ids.shape[1])
        check_dtype(name, tensor, dtype)
        check_contiguous(name, tensor)
    check_same_device(counts=counts, bias_ids=ids, biases=biases)
