"""Top-k, top-p and min-p as one limit a row: how far below the largest logit a token may lie.

A limit is looked for by counting in the groups that can reach it, which the largest logit of each tells.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._dependent import await_inputs, dependent_launch
from ._logits import FINITE
from ._sample_groups import COLDEST, group_size, keep, load_groups, weigh

#: The bits of infinity: nothing lies further below.
NO_LIMIT = 0x7F800000
#: Groups that a program takes at once, and its warps.
_GROUPS, _WARPS = 8, 8


@triton.jit
def _bound(bits, weights, target, NO_LIMIT: tl.constexpr):
    """Smallest limit up to which the weights (of groups, by the bits of their gaps) reach the target; or NO_LIMIT."""
    low, high = -1, tl.full([], NO_LIMIT, tl.int32)
    while high - low > 1:
        middle = low + (high - low) // 2
        reached = tl.sum(tl.where(bits <= middle, weights, 0.0), axis=0) >= target
        low, high = tl.where(reached, low, middle), tl.where(reached, middle, high)
    return high


@triton.jit
def _listed(list_ptr, start, count, GROUPS: tl.constexpr, nothing):
    """Numbers of GROUPS groups of a list; `nothing`, which has no id, behind its end."""
    place = start + tl.arange(0, GROUPS)
    return tl.load(list_ptr + place, mask=place < count, other=nothing)


@triton.jit
def _mass(
    row_ptr, list_ptr, count, nothing, vocab, best, limit, decay,
    FINITE: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Unnormalised probability of the tokens up to a limit."""
    mass = tl.zeros([GROUPS, GROUP], tl.float32)
    for start in tl.range(0, count, GROUPS):
        group = _listed(list_ptr, start, count, GROUPS, nothing)
        gap = best - load_groups(row_ptr, group, vocab, FINITE, GROUP)
        mass += tl.where(gap.to(tl.int32, bitcast=True) <= limit, tl.exp2(gap * decay), 0.0)
    return tl.sum(tl.sum(mass, axis=1), axis=0)


@triton.jit
def _total(x):
    return tl.sum(tl.sum(x, axis=1), axis=0)


@triton.jit
def _narrow(
    row_ptr, list_ptr, count, nothing, vocab, best, limit, decay, target,
    WEIGHTED: tl.constexpr, FINITE: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Smallest limit, at most the given one, up to which the mass (or the count of tokens) reaches the target.

    Gaps are not negative, so their bits order as they do. Each pass over the groups measures three limits between one
    that falls short and one that reaches; it ends when these have no other token between them.
    """
    low, low_count = -1, 0.0
    high, high_count, high_mass = limit, float("inf"), float("inf")
    while (high - low > 1) & (high_count - low_count > 1.0) & (high_mass != target):
        step = tl.maximum((high - low) // 4, 1)
        p1, p2, p3 = low + step, low + 2 * step, low + 3 * step
        c1 = tl.zeros([GROUPS, GROUP], tl.float32)
        c2, c3, m1, m2, m3 = c1, c1, c1, c1, c1
        for start in tl.range(0, count, GROUPS):
            group = _listed(list_ptr, start, count, GROUPS, nothing)
            gap = best - load_groups(row_ptr, group, vocab, FINITE, GROUP)
            bits = gap.to(tl.int32, bitcast=True)
            c1 += tl.where(bits <= p1, 1.0, 0.0)
            c2 += tl.where(bits <= p2, 1.0, 0.0)
            c3 += tl.where(bits <= p3, 1.0, 0.0)
            if WEIGHTED:
                weight = tl.exp2(gap * decay)
                m1 += tl.where(bits <= p1, weight, 0.0)
                m2 += tl.where(bits <= p2, weight, 0.0)
                m3 += tl.where(bits <= p3, weight, 0.0)
        n1, n2, n3 = _total(c1), _total(c2), _total(c3)
        s1, s2, s3 = n1, n2, n3
        if WEIGHTED:
            s1, s2, s3 = _total(m1), _total(m2), _total(m3)
        low_count = tl.where(s1 >= target, low_count, tl.where(s2 >= target, n1, tl.where(s3 >= target, n2, n3)))
        low = tl.where(s1 >= target, low, tl.where(s2 >= target, p1, tl.where(s3 >= target, p2, p3)))
        high = tl.where(s1 >= target, p1, tl.where(s2 >= target, p2, tl.where(s3 >= target, p3, high)))
        high_count = tl.where(s1 >= target, n1, tl.where(s2 >= target, n2, tl.where(s3 >= target, n3, high_count)))
        high_mass = tl.where(s1 >= target, s1, tl.where(s2 >= target, s2, tl.where(s3 >= target, s3, high_mass)))
    return high


@triton.jit
def _limit(
    row_ptr, list_ptr, top_ptr, mass_ptr, vocab, num_groups, temperature, top_k, top_p, min_p,
    FINITE: tl.constexpr, COLDEST: tl.constexpr, NO_LIMIT: tl.constexpr,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, GROUPS_PAD: tl.constexpr,
):  # fmt: skip
    """A row's limit. Groups that it leaves nothing of lose their tops; the mass of the others is what it leaves."""
    number = tl.arange(0, GROUPS_PAD)
    there = number < num_groups
    top = tl.load(top_ptr + number, mask=there, other=float("-inf"))
    best = tl.maximum(tl.max(top, axis=0), -FINITE)
    heat = tl.maximum(temperature, COLDEST)
    cold = 1.0 / heat
    decay = -1.4426950408889634 * cold
    gap = best - top
    bits = gap.to(tl.int32, bitcast=True)
    share = tl.where(top > float("-inf"), tl.exp2(gap * decay), 0.0)
    limits_count = (top_k > 0) & (top_k < vocab)
    limit = tl.full([], NO_LIMIT, tl.int32)
    target = tl.full([], 0.0, tl.float32)
    if limits_count:
        # As many groups have a token each that lies within their largest gap.
        limit = _bound(bits, tl.where(top > float("-inf"), 1.0, 0.0), top_k.to(tl.float32), NO_LIMIT)
    elif top_p < 1.0:
        mass = tl.load(mass_ptr + number, mask=there, other=0.0)
        target = tl.maximum(top_p * tl.sum(mass * share, axis=0), 1e-30)
        limit = _bound(bits, share, target, NO_LIMIT)
    if min_p > 0.0:
        widest = tl.maximum(-tl.log(min_p) * heat, 0.0).to(tl.int32, bitcast=True)
    else:
        widest = tl.full([], NO_LIMIT, tl.int32)
    if (limits_count == 0) & (top_p >= 1.0):
        limit = tl.minimum(limit, widest)
    reaches = there & (bits <= limit)
    count = tl.sum(reaches.to(tl.int32), axis=0)
    tl.store(list_ptr + tl.cumsum(reaches.to(tl.int32), axis=0) - 1, number, mask=reaches)
    tl.debug_barrier()
    if limits_count:
        limit = _narrow(
            row_ptr, list_ptr, count, num_groups, vocab, best, limit, decay, top_k.to(tl.float32),
            False, FINITE, GROUP, GROUPS,
        )  # fmt: skip
        if top_p < 1.0:
            mass = _mass(row_ptr, list_ptr, count, num_groups, vocab, best, limit, decay, FINITE, GROUP, GROUPS)
            target = tl.maximum(top_p * mass, 1e-30)
    if top_p < 1.0:
        limit = _narrow(
            row_ptr, list_ptr, count, num_groups, vocab, best, limit, decay, target, True, FINITE, GROUP, GROUPS
        )
    limit = tl.minimum(limit, widest)
    tl.store(top_ptr + number, float("-inf"), mask=there & (bits > limit))
    for start in tl.range(0, count, GROUPS):
        group = _listed(list_ptr, start, count, GROUPS, num_groups)
        _, mass = weigh(keep(load_groups(row_ptr, group, vocab, FINITE, GROUP), best, limit), cold, FINITE)
        tl.store(mass_ptr + group, mass, mask=group < num_groups)
    return limit


@triton.jit
def _limit_kernel(
    logits_ptr,
    penalised_ptr,
    penalised_row_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    top_ptr,
    mass_ptr,
    list_ptr,
    limit_ptr,
    vocab,
    row_stride,
    num_groups,
    PENALISED: tl.constexpr,
    FINITE: tl.constexpr,
    COLDEST: tl.constexpr,
    NO_LIMIT: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUPS_PAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a row."""
    await_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperature_ptr + row)
    top_k, top_p, min_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row), tl.load(min_p_ptr + row)
    limit = tl.full([], NO_LIMIT, tl.int32)
    if (temperature > 0) & (((top_k > 0) & (top_k < vocab)) | (top_p < 1.0) | (min_p > 0.0)):
        row_ptr, list_ptr = logits_ptr + row * row_stride, list_ptr + row * num_groups
        top_ptr, mass_ptr = top_ptr + row * num_groups, mass_ptr + row * num_groups
        if PENALISED:
            other = tl.load(penalised_row_ptr + row).to(tl.int64)
            if other >= 0:
                limit = _limit(
                    penalised_ptr + other * vocab, list_ptr, top_ptr, mass_ptr, vocab, num_groups,
                    temperature, top_k, top_p, min_p, FINITE, COLDEST, NO_LIMIT, GROUP, GROUPS, GROUPS_PAD,
                )  # fmt: skip
            else:
                limit = _limit(
                    row_ptr, list_ptr, top_ptr, mass_ptr, vocab, num_groups,
                    temperature, top_k, top_p, min_p, FINITE, COLDEST, NO_LIMIT, GROUP, GROUPS, GROUPS_PAD,
                )  # fmt: skip
        else:
            limit = _limit(
                row_ptr, list_ptr, top_ptr, mass_ptr, vocab, num_groups,
                temperature, top_k, top_p, min_p, FINITE, COLDEST, NO_LIMIT, GROUP, GROUPS, GROUPS_PAD,
            )  # fmt: skip
    tl.store(limit_ptr + row, limit)


def launch_limit(
    logits: torch.Tensor,
    penalised: torch.Tensor | None,
    penalised_row: torch.Tensor | None,
    settings: tuple[torch.Tensor, ...],
    top: torch.Tensor,
    mass: torch.Tensor,
) -> torch.Tensor:
    """Limits [rows] (int32), by temperature, top-k, top-p and min-p; top and mass become those of what is left."""
    rows, vocab = logits.shape
    groups = top.shape[1]
    limit, listed = top.new_empty(rows, dtype=torch.int32), torch.empty_like(top, dtype=torch.int32)
    _limit_kernel[(rows,)](
        *(logits, penalised, penalised_row, *settings, top, mass, listed, limit, vocab, logits.stride(0), groups),
        PENALISED=penalised is not None,
        FINITE=FINITE,
        COLDEST=COLDEST,
        NO_LIMIT=NO_LIMIT,
        GROUP=group_size(vocab),
        GROUPS=_GROUPS,
        GROUPS_PAD=triton.next_power_of_2(groups),
        num_warps=_WARPS,
        **dependent_launch(logits),
    )
    return limit
