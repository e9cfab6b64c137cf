"""Log-probabilities of chosen tokens and of the most likely ones, without the log-softmax of a whole row.

A token's logit and id make one number that sorts by the logit, then by the lower id: so the most likely tokens are the
same ones, in the same order, whatever else is computed beside them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._launch import check_dtype, check_float, check_rows, check_same_device, check_shape, use_triton
from ._logits import FINITE, clean_logits, load_logits

#: As many alternatives as OpenAI's API gives at most.
_USUAL_TOP = 20
_BLOCK = 4096
_LAST_ID = 2**31 - 1
_LOW_HALF = 2**32 - 1
#: Below every key.
_NO_KEY = -(2**63)


def logprobs_reference(
    logits: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor, top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = clean_logits(logits[rows])
    total = x.double().logsumexp(-1, keepdim=True)
    bits = torch.where(x == 0, 0.0, x).view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ _LAST_ID, bits).long()
    keys = (ordered << 32) | (_LAST_ID - torch.arange(x.shape[1], device=x.device))
    top_ids = _LAST_ID - (keys.topk(min(top, x.shape[1])).values & _LOW_HALF)
    return _less(x.gather(-1, ids[rows, None]), total).squeeze(-1), top_ids, _less(x.gather(-1, top_ids), total)


def _less(x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """-inf stays what it is, also where everything is."""
    return torch.where(x == -torch.inf, x, (x.double() - total).float())


@triton.jit
def _keys(x, ids, LAST_ID: tl.constexpr):
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ LAST_ID, bits).to(tl.int64)
    return (ordered << 32) | (LAST_ID - ids).to(tl.int64)


@triton.jit(do_not_specialize=["num_splits", "top"])
def _split_kernel(
    logits_ptr,
    rows_ptr,
    best_ptr,
    mass_ptr,
    keys_ptr,
    vocab,
    row_stride,
    num_splits,
    top,
    FINITE: tl.constexpr,
    LAST_ID: tl.constexpr,
    NO_KEY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a (row, split): the largest logit, the sum of exponentials over it, and the largest keys."""
    index, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = split * BLOCK + tl.arange(0, BLOCK)
    x = load_logits(logits_ptr + tl.load(rows_ptr + index) * row_stride, ids, vocab, FINITE)
    best = tl.max(x, axis=0)
    place = index * num_splits + split
    tl.store(best_ptr + place, best)
    tl.store(mass_ptr + place, tl.sum(tl.exp(x - tl.maximum(best, -FINITE)), axis=0))
    if top > 0:
        keys = tl.where(ids < vocab, _keys(x, ids, LAST_ID), NO_KEY)
        for i in range(top):
            largest = tl.max(keys, axis=0)
            tl.store(keys_ptr + place * top + i, largest)
            keys = tl.where(keys == largest, NO_KEY, keys)


@triton.jit(do_not_specialize=["num_splits", "top"])
def _merge_kernel(
    logits_ptr,
    rows_ptr,
    ids_ptr,
    best_ptr,
    mass_ptr,
    keys_ptr,
    chosen_ptr,
    top_ids_ptr,
    top_ptr,
    vocab,
    row_stride,
    num_splits,
    top,
    FINITE: tl.constexpr,
    LAST_ID: tl.constexpr,
    NO_KEY: tl.constexpr,
    SPLITS_PAD: tl.constexpr,
    KEYS_PAD: tl.constexpr,
):
    """One program a row."""
    index = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS_PAD)
    inside = split < num_splits
    bests = tl.load(best_ptr + index * num_splits + split, mask=inside, other=float("-inf"))
    masses = tl.load(mass_ptr + index * num_splits + split, mask=inside, other=0.0)
    best = tl.maximum(tl.max(bests, axis=0), -FINITE)
    # The largest alone has a mass of 1; less is a row without any possible token.
    total = best + tl.log(tl.maximum(tl.sum(masses * tl.exp(bests - best), axis=0), 1.0))
    row = tl.load(rows_ptr + index)
    x = load_logits(logits_ptr + row * row_stride, tl.load(ids_ptr + row), vocab, FINITE)
    tl.store(chosen_ptr + index, tl.where(x == float("-inf"), x, x - total))
    if top > 0:
        at = tl.arange(0, KEYS_PAD)
        keys = tl.load(keys_ptr + index * num_splits * top + at, mask=at < num_splits * top, other=NO_KEY)
        for i in range(top):
            largest = tl.max(keys, axis=0)
            keys = tl.where(keys == largest, NO_KEY, keys)
            ordered = (largest >> 32).to(tl.int32)
            x = tl.where(ordered < 0, ordered ^ LAST_ID, ordered).to(tl.float32, bitcast=True)
            tl.store(top_ids_ptr + index * top + i, LAST_ID - (largest & LAST_ID))
            tl.store(top_ptr + index * top + i, tl.where(x == float("-inf"), x, x - total))


def logprobs(
    logits: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor, top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the rows (int64 [L]) of logits [S, V], with ids (int64 [S]) the chosen tokens:

    the chosen one's log-probability (float32 [L]), and ids (int64) and log-probabilities (float32) of the `top` most
    likely tokens, both [L, top], or [L, V] when there are fewer; of equals the lower id comes first. A NaN logit is
    impossible, as -inf is.
    """
    check_float("logits", logits)
    check_shape("logits", logits, None, None)
    check_rows("logits", logits)
    if logits.shape[1] == 0:
        raise ValueError("logits has no columns; there is no token to look at")
    if top < 0:
        raise ValueError(f"top is {top}; it must be 0 or more")
    check_shape("rows", rows, None)
    check_shape("ids", ids, logits.shape[0])
    for name, tensor in {"rows": rows, "ids": ids}.items():
        check_dtype(name, tensor, torch.int64)
        check_rows(name, tensor)
    check_same_device(logits=logits, rows=rows, ids=ids)
    if not use_triton(logits):
        return logprobs_reference(logits, rows, ids, top)
    vocab, num = logits.shape[1], rows.shape[0]
    top = min(top, vocab)
    block = min(_BLOCK, triton.next_power_of_2(vocab))
    splits = triton.cdiv(vocab, block)
    chosen = logits.new_empty(num, dtype=torch.float32)
    top_ids, top_values = ids.new_empty(num, top), logits.new_empty(num, top, dtype=torch.float32)
    if num == 0:
        return chosen, top_ids, top_values
    best, mass = (logits.new_empty(num, splits, dtype=torch.float32) for _ in range(2))
    keys = ids.new_empty(num, splits, top)
    sizes = vocab, logits.stride(0), splits, top
    constants = {"FINITE": FINITE, "LAST_ID": _LAST_ID, "NO_KEY": _NO_KEY}
    warps = max(1, min(8, block // 512))
    _split_kernel[(num, splits)](logits, rows, best, mass, keys, *sizes, **constants, BLOCK=block, num_warps=warps)
    _merge_kernel[(num,)](
        *(logits, rows, ids, best, mass, keys, chosen, top_ids, top_values, *sizes),
        **constants,
        SPLITS_PAD=triton.next_power_of_2(splits),
        # The same for most numbers, so that a new one does not compile a kernel in the middle of the work.
        KEYS_PAD=triton.next_power_of_2(splits * max(top, _USUAL_TOP) if top else 1),
        num_warps=4,
    )
    return chosen, top_ids, top_values
