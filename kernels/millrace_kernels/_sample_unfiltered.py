"""Sampling without filters: rows are cut, so that a few of them fill the device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._dependent import await_inputs, dependent_launch
from ._launch import multiprocessors
from ._logits import FINITE
from ._sample_blocks import COLDEST, best_of, draw

#: Programs a multiprocessor into which rows are cut.
_PROGRAMS = 8


@triton.jit
def _first_of(values_ptr, ids_ptr, row, num_splits, vocab, SPLITS_PAD: tl.constexpr):
    """(largest value, its lowest id) of a row's splits."""
    split = tl.arange(0, SPLITS_PAD)
    values = tl.load(values_ptr + row * num_splits + split, mask=split < num_splits, other=float("-inf"))
    ids = tl.load(ids_ptr + row * num_splits + split, mask=split < num_splits, other=vocab)
    top = tl.max(values, axis=0)
    return top, tl.min(tl.where(values == top, ids, vocab), axis=0)


@triton.jit(do_not_specialize=["num_splits", "chunk"])
def _best_kernel(
    logits_ptr,
    penalised_ptr,
    penalised_row_ptr,
    best_ptr,
    best_id_ptr,
    vocab,
    row_stride,
    num_splits,
    chunk,
    PENALISED: tl.constexpr,
    FINITE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a (row, split)."""
    await_inputs(PDL)
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    begin = split * chunk
    end = tl.minimum(begin + chunk, vocab)
    row_ptr = logits_ptr + row * row_stride
    if PENALISED:
        other = tl.load(penalised_row_ptr + row).to(tl.int64)
        if other >= 0:
            best, best_id = best_of(penalised_ptr + other * vocab, begin, end, vocab, FINITE, BLOCK)
        else:
            best, best_id = best_of(row_ptr, begin, end, vocab, FINITE, BLOCK)
    else:
        best, best_id = best_of(row_ptr, begin, end, vocab, FINITE, BLOCK)
    tl.store(best_ptr + row * num_splits + split, best)
    tl.store(best_id_ptr + row * num_splits + split, best_id)


@triton.jit
def _score(
    row_ptr,
    begin,
    end,
    vocab,
    best,
    best_id,
    temperature,
    seed,
    position,
    FINITE: tl.constexpr,
    COLDEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(largest score, its id) of a split; the sums are those of _sample_kernel, bit by bit."""
    no_limit, heat = tl.full([], 0x7F800000, tl.int32), tl.maximum(temperature, COLDEST)
    top = tl.maximum(best, -FINITE)
    return draw(row_ptr, begin, end, vocab, top, best_id, no_limit, heat, seed, position, FINITE, BLOCK)


@triton.jit(do_not_specialize=["num_splits", "chunk"])
def _draw_kernel(
    logits_ptr,
    penalised_ptr,
    penalised_row_ptr,
    temperature_ptr,
    seeds_ptr,
    positions_ptr,
    best_ptr,
    best_id_ptr,
    score_ptr,
    score_id_ptr,
    vocab,
    row_stride,
    num_splits,
    chunk,
    PENALISED: tl.constexpr,
    FINITE: tl.constexpr,
    COLDEST: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS_PAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a (row, split)."""
    await_inputs(PDL)
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    best, best_id = _first_of(best_ptr, best_id_ptr, row, num_splits, vocab, SPLITS_PAD)
    temperature = tl.load(temperature_ptr + row)
    score, score_id = tl.full([], float("-inf"), tl.float32), best_id
    if temperature > 0:
        begin = split * chunk
        end = tl.minimum(begin + chunk, vocab)
        seed, position = tl.load(seeds_ptr + row), tl.load(positions_ptr + row)
        row_ptr = logits_ptr + row * row_stride
        if PENALISED:
            other = tl.load(penalised_row_ptr + row).to(tl.int64)
            if other >= 0:
                other_ptr = penalised_ptr + other * vocab
                score, score_id = _score(
                    other_ptr, begin, end, vocab, best, best_id, temperature, seed, position, FINITE, COLDEST, BLOCK
                )
            else:
                score, score_id = _score(
                    row_ptr, begin, end, vocab, best, best_id, temperature, seed, position, FINITE, COLDEST, BLOCK
                )
        else:
            score, score_id = _score(
                row_ptr, begin, end, vocab, best, best_id, temperature, seed, position, FINITE, COLDEST, BLOCK
            )
    tl.store(score_ptr + row * num_splits + split, score)
    tl.store(score_id_ptr + row * num_splits + split, score_id)


@triton.jit(do_not_specialize=["num_splits"])
def _pick_kernel(score_ptr, score_id_ptr, ids_ptr, vocab, num_splits, SPLITS_PAD: tl.constexpr, PDL: tl.constexpr):
    """One program a row."""
    await_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    _, chosen = _first_of(score_ptr, score_id_ptr, row, num_splits, vocab, SPLITS_PAD)
    tl.store(ids_ptr + row, chosen.to(tl.int64))


def launch_unfiltered(
    logits: torch.Tensor,
    penalised: torch.Tensor | None,
    penalised_row: torch.Tensor | None,
    temperature: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    ids: torch.Tensor,
    block: int,
) -> None:
    """The largest logit, the largest score, the id."""
    rows, vocab = logits.shape
    blocks = triton.cdiv(vocab, block)
    wanted = max(1, min(blocks, triton.cdiv(_PROGRAMS * multiprocessors(logits), rows)))
    chunk = triton.cdiv(blocks, wanted) * block
    splits, warps, pad = triton.cdiv(vocab, chunk), max(1, min(16, block // 256)), triton.next_power_of_2(blocks)
    best, score = (logits.new_empty(rows, splits, dtype=torch.float32) for _ in range(2))
    best_id, score_id = (logits.new_empty(rows, splits, dtype=torch.int32) for _ in range(2))
    sizes, grid, launch = (vocab, logits.stride(0), splits, chunk), (rows, splits), dependent_launch(logits)
    some = penalised is not None
    _best_kernel[grid](
        *(logits, penalised, penalised_row, best, best_id, *sizes),
        PENALISED=some,
        FINITE=FINITE,
        BLOCK=block,
        num_warps=warps,
        **launch,
    )
    _draw_kernel[grid](
        *(logits, penalised, penalised_row, temperature, seeds, positions, best, best_id, score, score_id, *sizes),
        PENALISED=some,
        FINITE=FINITE,
        COLDEST=COLDEST,
        BLOCK=block,
        SPLITS_PAD=pad,
        num_warps=warps,
        **launch,
    )
    _pick_kernel[(rows,)](score, score_id, ids, vocab, splits, SPLITS_PAD=pad, num_warps=1, **launch)
