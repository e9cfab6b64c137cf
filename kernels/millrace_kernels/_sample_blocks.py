"""What sampling with and without filters share: the largest logit and the largest score of a part of a row."""

from __future__ import annotations

import triton
import triton.language as tl

from ._gumbel import gumbel, philox_words
from ._logits import load_logits

#: Temperatures between 0 and this act as this, so that dividing by one stays finite.
COLDEST = 1e-30


@triton.jit
def best_of(row_ptr, begin, end, vocab, FINITE: tl.constexpr, BLOCK: tl.constexpr):
    """(largest logit, its lowest id) of the ids from `begin` to `end`."""
    top, top_id = tl.full([BLOCK], float("-inf"), tl.float32), begin + tl.arange(0, BLOCK)
    for start in tl.range(begin, end, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        x = load_logits(row_ptr, ids, vocab, FINITE)
        top_id = tl.where(x > top, ids, top_id)
        top = tl.maximum(x, top)
    best = tl.max(top, axis=0)
    return best, tl.min(tl.where(top == best, top_id, vocab), axis=0)


@triton.jit
def draw(
    row_ptr, begin, end, vocab, best, best_id, limit, heat, seed, position, FINITE: tl.constexpr, BLOCK: tl.constexpr
):
    """(largest score, its lowest id) of the ids from `begin`, a multiple of 4, to `end` that are within the limit."""
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    top_id = tl.zeros([BLOCK], tl.int32) + best_id
    cold = 1.0 / heat
    for start in tl.range(begin, end, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        gap = best - load_logits(row_ptr, ids, vocab, FINITE)
        kept = gap.to(tl.int32, bitcast=True) <= limit
        # After a filter most blocks hold nothing, and their noise need not be made.
        if tl.max(kept.to(tl.int32), axis=0) > 0:
            score = tl.where(kept, gumbel(philox_words(seed, start, position, BLOCK)) - gap * cold, float("-inf"))
            top_id = tl.where(score > top, ids, top_id)
            top = tl.maximum(score, top)
    score = tl.max(top, axis=0)
    return score, tl.min(tl.where(top == score, top_id, vocab), axis=0)
