"""Sampling with top-k, top-p and min-p: one program a row, which passes over it until it knows what is kept."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._logits import FINITE, load_logits
from ._sample_blocks import COLDEST, best_of, draw


@triton.jit
def _mass(row_ptr, vocab, best, limit, decay, FINITE: tl.constexpr, BLOCK: tl.constexpr):
    """Unnormalised probability of the tokens up to a limit."""
    mass = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, vocab, BLOCK):
        gap = best - load_logits(row_ptr, start + tl.arange(0, BLOCK), vocab, FINITE)
        mass += tl.where(gap.to(tl.int32, bitcast=True) <= limit, tl.exp2(gap * decay), 0.0)
    return tl.sum(mass, axis=0)


@triton.jit
def _narrow(
    row_ptr, vocab, best, limit, decay, target, WEIGHTED: tl.constexpr, FINITE: tl.constexpr, BLOCK: tl.constexpr
):
    """Smallest limit, at most the given one, up to which the mass (or the count of tokens) reaches the target.

    A limit is the bits of a gap: gaps are not negative, so their bits order as they do. Each pass over the row measures
    three limits between one that falls short and one that reaches; it ends when these have no other token between them.
    """
    low, low_count = -1, 0.0
    high, high_count, high_mass = limit, float("inf"), float("inf")
    while (high - low > 1) & (high_count - low_count > 1.0) & (high_mass != target):
        step = tl.maximum((high - low) // 4, 1)
        p1, p2, p3 = low + step, low + 2 * step, low + 3 * step
        c1, c2, c3 = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
        m1, m2, m3 = c1, c2, c3
        for start in tl.range(0, vocab, BLOCK):
            gap = best - load_logits(row_ptr, start + tl.arange(0, BLOCK), vocab, FINITE)
            bits = gap.to(tl.int32, bitcast=True)
            c1 += tl.where(bits <= p1, 1.0, 0.0)
            c2 += tl.where(bits <= p2, 1.0, 0.0)
            c3 += tl.where(bits <= p3, 1.0, 0.0)
            if WEIGHTED:
                weight = tl.exp2(gap * decay)
                m1 += tl.where(bits <= p1, weight, 0.0)
                m2 += tl.where(bits <= p2, weight, 0.0)
                m3 += tl.where(bits <= p3, weight, 0.0)
        n1, n2, n3 = tl.sum(c1, axis=0), tl.sum(c2, axis=0), tl.sum(c3, axis=0)
        s1, s2, s3 = n1, n2, n3
        if WEIGHTED:
            s1, s2, s3 = tl.sum(m1, axis=0), tl.sum(m2, axis=0), tl.sum(m3, axis=0)
        low_count = tl.where(s1 >= target, low_count, tl.where(s2 >= target, n1, tl.where(s3 >= target, n2, n3)))
        low = tl.where(s1 >= target, low, tl.where(s2 >= target, p1, tl.where(s3 >= target, p2, p3)))
        high = tl.where(s1 >= target, p1, tl.where(s2 >= target, p2, tl.where(s3 >= target, p3, high)))
        high_count = tl.where(s1 >= target, n1, tl.where(s2 >= target, n2, tl.where(s3 >= target, n3, high_count)))
        high_mass = tl.where(s1 >= target, s1, tl.where(s2 >= target, s2, tl.where(s3 >= target, s3, high_mass)))
    return high


@triton.jit
def _choose(
    row_ptr,
    vocab,
    temperature,
    top_k,
    top_p,
    min_p,
    seed,
    position,
    FINITE: tl.constexpr,
    COLDEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The id that one row gives."""
    best, chosen = best_of(row_ptr, 0, vocab, vocab, FINITE, BLOCK)
    if temperature > 0:
        best = tl.maximum(best, -FINITE)
        heat = tl.maximum(temperature, COLDEST)
        decay = -1.4426950408889634 / heat
        limit = tl.full([], 0x7F800000, tl.int32)
        if (top_k > 0) & (top_k < vocab):
            limit = _narrow(row_ptr, vocab, best, limit, decay, top_k.to(tl.float32), False, FINITE, BLOCK)
        if top_p < 1.0:
            target = tl.maximum(top_p * _mass(row_ptr, vocab, best, limit, decay, FINITE, BLOCK), 1e-30)
            limit = _narrow(row_ptr, vocab, best, limit, decay, target, True, FINITE, BLOCK)
        if min_p > 0.0:
            widest = tl.maximum(-tl.log(min_p) * heat, 0.0)
            limit = tl.minimum(limit, widest.to(tl.int32, bitcast=True))
        _, chosen = draw(row_ptr, 0, vocab, vocab, best, chosen, limit, heat, seed, position, FINITE, BLOCK)
    return chosen


@triton.jit
def _sample_kernel(
    logits_ptr,
    penalised_ptr,
    penalised_row_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seeds_ptr,
    positions_ptr,
    ids_ptr,
    vocab,
    row_stride,
    PENALISED: tl.constexpr,
    FINITE: tl.constexpr,
    COLDEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row."""
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperature_ptr + row)
    top_k, top_p, min_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row), tl.load(min_p_ptr + row)
    seed, position = tl.load(seeds_ptr + row), tl.load(positions_ptr + row)
    row_ptr = logits_ptr + row * row_stride
    if PENALISED:
        other = tl.load(penalised_row_ptr + row).to(tl.int64)
        if other >= 0:
            other_ptr = penalised_ptr + other * vocab
            chosen = _choose(other_ptr, vocab, temperature, top_k, top_p, min_p, seed, position, FINITE, COLDEST, BLOCK)
        else:
            chosen = _choose(row_ptr, vocab, temperature, top_k, top_p, min_p, seed, position, FINITE, COLDEST, BLOCK)
    else:
        chosen = _choose(row_ptr, vocab, temperature, top_k, top_p, min_p, seed, position, FINITE, COLDEST, BLOCK)
    tl.store(ids_ptr + row, chosen.to(tl.int64))


def launch_filtered(
    logits: torch.Tensor,
    penalised: torch.Tensor | None,
    penalised_row: torch.Tensor | None,
    settings: tuple[torch.Tensor, ...],
    ids: torch.Tensor,
    block: int,
) -> None:
    """`settings` in the order of `sample`."""
    rows, vocab = logits.shape
    _sample_kernel[(rows,)](
        logits,
        penalised,
        penalised_row,
        *settings,
        ids,
        vocab,
        logits.stride(0),
        PENALISED=penalised is not None,
        FINITE=FINITE,
        COLDEST=COLDEST,
        BLOCK=block,
        num_warps=max(1, min(16, block // 256)),
    )
