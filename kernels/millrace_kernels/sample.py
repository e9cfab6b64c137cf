"""Draw one token id a row: temperature, top-k, top-p, min-p, and a counter random generator.

The draw is Gumbel-max in two stages: the group of neighbouring ids whose log-sum-exp plus Gumbel noise is largest, and
of its ids the one whose logit plus noise is. Either noise is a pure function of seed, position and group or id, so that
a result depends neither on the batch nor on when or where it is computed.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from ._gumbel import gumbel_reference, philox_reference
from ._launch import check_contiguous, check_dtype, check_float, check_rows, check_same_device, check_shape, use_triton
from ._logits import FINITE, clean_logits
from ._sample_draw import GROUP_STREAM, launch_sample
from ._sample_groups import COLDEST, group_size


def sample_reference(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    *,
    any_filter: bool = True,
    penalised: torch.Tensor | None = None,
    penalised_row: torch.Tensor | None = None,
) -> torch.Tensor:
    x = clean_logits(logits)
    if penalised is not None and penalised_row is not None:
        others = clean_logits(penalised)[penalised_row.clamp(min=0).long()]
        x = torch.where((penalised_row >= 0)[:, None], others, x)
    best = x.amax(-1, keepdim=True).clamp(min=-FINITE)
    # How far each logit lies below the largest: 0 is the best token, infinity is one that cannot be drawn.
    gap = best - x
    ids = gap.argmin(-1)
    rows = (temperature > 0).nonzero().squeeze(-1)
    if rows.numel() == 0:
        return ids
    gap, heat = gap[rows], temperature[rows, None].clamp(min=COLDEST)
    if any_filter:
        gap = gap.masked_fill(gap > _widest_gap(gap, heat, top_k[rows], top_p[rows], min_p[rows]), torch.inf)
    ids[rows] = _draw(-gap / heat, seeds[rows], positions[rows])
    return ids


def _draw(x: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Of each row of x [R, V], logits over their temperature, an id."""
    size = group_size(x.shape[1])
    grouped = pad(x, (0, -x.shape[1] % size), value=-torch.inf).view(len(x), -1, size)
    numbers = torch.arange(grouped.shape[1], device=x.device)
    words = philox_reference(seeds[:, None], positions[:, None], 4 * numbers, GROUP_STREAM)
    group = (grouped.logsumexp(-1).double() + gumbel_reference(words)).argmax(-1)
    ids = group[:, None] * size + torch.arange(size, device=x.device)
    noise = gumbel_reference(philox_reference(seeds[:, None], positions[:, None], ids))
    within = grouped[torch.arange(len(x), device=x.device), group].double() + noise
    return ids.gather(1, within.argmax(-1, keepdim=True))[:, 0]


def _widest_gap(
    gap: torch.Tensor, heat: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> torch.Tensor:
    """Largest gap that the filters keep, [R, 1]; tokens level with the last one kept are kept too."""
    vocab = gap.shape[1]
    ordered, _ = gap.sort(-1)
    counts = torch.where((top_k <= 0) | (top_k > vocab), vocab, top_k).long()
    limit = ordered.gather(-1, counts[:, None] - 1)
    weights = torch.exp(-(ordered / heat).double()).masked_fill(ordered > limit, 0)
    before = weights.cumsum(-1) - weights
    # A token stays while the mass of those before it falls short of top_p; the first always does.
    reached = (before < top_p[:, None] * weights.sum(-1, keepdim=True)).sum(-1, keepdim=True).clamp(min=1)
    nucleus = ordered.gather(-1, reached - 1)
    limit = torch.where(top_p[:, None] < 1, torch.minimum(limit, nucleus), limit)
    return torch.minimum(limit, (-torch.log(min_p[:, None]) * heat).clamp(min=0))


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    *,
    any_filter: bool = True,
    penalised: torch.Tensor | None = None,
    penalised_row: torch.Tensor | None = None,
) -> torch.Tensor:
    """Ids [S] (int64) drawn from logits [S, V]; every other argument is [S].

    temperature (float32) 0 takes the largest logit, the lowest id among equals. Filters act in this order on
    logits / temperature: top_k (int32, 0 is all), top_p (float32, 1 is all) of what is left, min_p (float32, 0 is all)
    times the largest probability; tokens level with the last one kept are kept. seeds and positions (int64) choose the
    noise. A NaN logit is never drawn. any_filter=False promises that no row filters, and saves the passes.

    Rows of `penalised` [P, V] (float32, of `apply_penalties`) stand for those of logits: penalised_row (int32) says
    which one, -1 for none. The two go together.
    """
    check_float("logits", logits)
    check_shape("logits", logits, None, None)
    check_rows("logits", logits)
    if logits.shape[1] == 0:
        raise ValueError("logits has no columns; there is no token to draw")
    wanted = {
        "temperature": (temperature, torch.float32),
        "top_k": (top_k, torch.int32),
        "top_p": (top_p, torch.float32),
        "min_p": (min_p, torch.float32),
        "seeds": (seeds, torch.int64),
        "positions": (positions, torch.int64),
    }
    for name, (tensor, dtype) in wanted.items():
        check_shape(name, tensor, logits.shape[0])
        check_dtype(name, tensor, dtype)
        check_rows(name, tensor)
    check_same_device(logits=logits, **{name: tensor for name, (tensor, _) in wanted.items()})
    if (penalised is None) != (penalised_row is None):
        raise ValueError("penalised and penalised_row go together; give both or neither")
    if penalised is not None and penalised_row is not None:
        _check_penalised(logits, penalised, penalised_row)
    settings = temperature, top_k, top_p, min_p, seeds, positions
    if not use_triton(logits):
        others = {"penalised": penalised, "penalised_row": penalised_row}
        return sample_reference(logits, *settings, any_filter=any_filter, **others)
    ids = torch.empty_like(seeds)
    if len(ids):
        launch_sample(logits, penalised, penalised_row, settings, any_filter, ids)
    return ids


def _check_penalised(logits: torch.Tensor, penalised: torch.Tensor, penalised_row: torch.Tensor) -> None:
    check_shape("penalised", penalised, None, logits.shape[1])
    check_dtype("penalised", penalised, torch.float32)
    check_contiguous("penalised", penalised)
    check_shape("penalised_row", penalised_row, logits.shape[0])
    check_dtype("penalised_row", penalised_row, torch.int32)
    check_rows("penalised_row", penalised_row)
    check_same_device(logits=logits, penalised=penalised, penalised_row=penalised_row)
