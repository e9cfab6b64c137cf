"""Sampling: a pass over the logits that weighs groups, by many programs a row, and the draw, by one."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._dependent import await_inputs, dependent_launch
from ._gumbel import gumbel, philox_firsts, philox_words
from ._logits import FINITE, load_logits
from ._sample_groups import COLDEST, group_size, keep, load_groups, weigh
from ._sample_limit import launch_limit

#: Which of the generator's streams has the noise of groups; that of ids is 0.
GROUP_STREAM = 1
#: Groups of a program, of one warp: as measured on an H200.
_GROUPS = 4


@triton.jit
def _weigh_kernel(
    logits_ptr,
    penalised_ptr,
    penalised_row_ptr,
    temperature_ptr,
    top_ptr,
    mass_ptr,
    vocab,
    row_stride,
    num_groups,
    PENALISED: tl.constexpr,
    FINITE: tl.constexpr,
    COLDEST: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a (row, GROUPS groups): top and mass [rows, num_groups] of `weigh`."""
    await_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    cold = 1.0 / tl.maximum(tl.load(temperature_ptr + row), COLDEST)
    if PENALISED:
        other = tl.load(penalised_row_ptr + row).to(tl.int64)
        if other >= 0:
            x = load_groups(penalised_ptr + other * vocab, group, vocab, FINITE, GROUP)
        else:
            x = load_groups(logits_ptr + row * row_stride, group, vocab, FINITE, GROUP)
    else:
        x = load_groups(logits_ptr + row * row_stride, group, vocab, FINITE, GROUP)
    top, mass = weigh(x, cold, FINITE)
    tl.store(top_ptr + row * num_groups + group, top, mask=group < num_groups)
    tl.store(mass_ptr + row * num_groups + group, mass, mask=group < num_groups)


@triton.jit
def _draw_kernel(
    logits_ptr,
    penalised_ptr,
    penalised_row_ptr,
    temperature_ptr,
    seeds_ptr,
    positions_ptr,
    limit_ptr,
    top_ptr,
    mass_ptr,
    ids_ptr,
    vocab,
    row_stride,
    num_groups,
    PENALISED: tl.constexpr,
    LIMITED: tl.constexpr,
    FINITE: tl.constexpr,
    COLDEST: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS_PAD: tl.constexpr,
    STREAM: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a row. A mass is 1 at least where there is any, and the top -inf where there is none."""
    await_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperature_ptr + row)
    seed, position = tl.load(seeds_ptr + row), tl.load(positions_ptr + row)
    cold = 1.0 / tl.maximum(temperature, COLDEST)
    group = tl.arange(0, GROUPS_PAD)
    there = group < num_groups
    score = tl.load(top_ptr + row * num_groups + group, mask=there, other=float("-inf"))
    best = tl.maximum(tl.max(score, axis=0), -FINITE)
    if temperature > 0:
        mass = tl.load(mass_ptr + row * num_groups + group, mask=there, other=0.0)
        noise = gumbel(philox_firsts(seed, group, position, STREAM))
        score = tl.log(tl.maximum(mass, 1.0)) - (best - score) * cold + noise
    start = tl.min(tl.where(score == tl.max(score, axis=0), group, num_groups), axis=0) * GROUP
    ids = start + tl.arange(0, GROUP)
    x = load_logits(logits_ptr + row * row_stride, ids, vocab, FINITE)
    if PENALISED:
        other = tl.load(penalised_row_ptr + row).to(tl.int64)
        if other >= 0:
            x = load_logits(penalised_ptr + other * vocab, ids, vocab, FINITE)
    if temperature > 0:
        if LIMITED:
            x = keep(x, best, tl.load(limit_ptr + row))
        gap = tl.maximum(tl.max(x, axis=0), -FINITE) - x
        x = gumbel(philox_words(seed, start, position, GROUP)) - gap * cold
    chosen = tl.min(tl.where(x == tl.max(x, axis=0), ids, vocab), axis=0)
    tl.store(ids_ptr + row, chosen.to(tl.int64))


def launch_sample(
    logits: torch.Tensor,
    penalised: torch.Tensor | None,
    penalised_row: torch.Tensor | None,
    settings: tuple[torch.Tensor, ...],
    any_filter: bool,
    ids: torch.Tensor,
) -> None:
    """What `sample` gives; `settings` are in its order."""
    temperature, top_k, top_p, min_p, seeds, positions = settings
    rows, vocab = logits.shape
    group = group_size(vocab)
    groups, stride = triton.cdiv(vocab, group), logits.stride(0)
    top, mass = (logits.new_empty(rows, groups, dtype=torch.float32) for _ in range(2))
    some = {"PENALISED": penalised is not None, "FINITE": FINITE, "COLDEST": COLDEST, "GROUP": group}
    launch = dependent_launch(logits)
    _weigh_kernel[(rows, triton.cdiv(groups, _GROUPS))](
        *(logits, penalised, penalised_row, temperature, top, mass, vocab, stride, groups),
        GROUPS=_GROUPS,
        num_warps=1,
        **some,
        **launch,
    )
    limit = None
    if any_filter:
        limit = launch_limit(logits, penalised, penalised_row, (temperature, top_k, top_p, min_p), top, mass)
    _draw_kernel[(rows,)](
        *(logits, penalised, penalised_row, temperature, seeds, positions, limit, top, mass, ids),
        *(vocab, stride, groups),
        LIMITED=limit is not None,
        GROUPS_PAD=triton.next_power_of_2(groups),
        STREAM=GROUP_STREAM,
        num_warps=4,
        **some,
        **launch,
    )
