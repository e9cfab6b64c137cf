"""Groups of neighbouring ids, of which sampling keeps the largest logit and the weight.

First a group is drawn by its share of the probability, then one of its ids. So noise is made for the groups and for one
group's ids, and not for every id of the vocabulary; and what filters leave is looked for in few groups.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._logits import load_logits

#: Temperatures between 0 and this act as this, so that dividing by one stays finite.
COLDEST = 1e-30
#: Ids of a group, of a vocabulary that has as many. Draws depend on it.
_GROUP = 512


def group_size(vocab: int) -> int:
    """Ids of a group, a power of two; the last group of a vocabulary may have fewer."""
    return max(4, min(_GROUP, triton.next_power_of_2(vocab)))


@triton.jit
def load_groups(row_ptr, groups, vocab, FINITE: tl.constexpr, GROUP: tl.constexpr):
    """Logits [n, GROUP] of groups [n]; -inf where there is no id."""
    return load_logits(row_ptr, groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :], vocab, FINITE)


@triton.jit
def keep(x, best, limit):
    """Logits, of which those that lie too far below the best are -inf. A limit is the bits of a gap."""
    return tl.where((best - x).to(tl.int32, bitcast=True) <= limit, x, float("-inf"))


@triton.jit
def weigh(x, cold, FINITE: tl.constexpr):
    """(largest logit, sum of the weights in units of its own) of each group [n, GROUP]; cold is 1 / temperature."""
    top = tl.max(x, axis=1)
    gap = tl.maximum(top, -FINITE)[:, None] - x
    return top, tl.sum(tl.exp2(gap * cold * -1.4426950408889634), axis=1)
