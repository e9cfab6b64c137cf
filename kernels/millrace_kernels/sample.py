"""Draw one token id a row: temperature, top-k, top-p, min-p, and a counter random generator.

The draw is Gumbel-max: the id whose logit plus Gumbel noise is largest. The noise of (seed, position, id) is a pure
function of those three, so that a result depends neither on the batch nor on when or where it is computed.
"""

from __future__ import annotations

import torch

from ._launch import check_dtype, check_float, check_rows, check_same_device, check_shape

_MASK = 0xFFFFFFFF
_FINITE = torch.finfo(torch.float32).max


def philox_reference(seeds: torch.Tensor, positions: torch.Tensor, vocab: int) -> torch.Tensor:
    """First word of Philox4x32-10 as int64 [S, V] under key seed and counter (id, position low, position high, 0)."""
    ids = torch.arange(vocab, device=seeds.device)[None, :]
    zero = torch.zeros_like(ids)
    c0, c1, c2, c3 = ids, positions[:, None] & _MASK, (positions[:, None] >> 32) & _MASK, zero
    k0, k1 = seeds[:, None] & _MASK, (seeds[:, None] >> 32) & _MASK
    for _ in range(10):
        # Products wrap in int64; their 64 bits are right, and the mask takes off what the signed shift drags in.
        low, high = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            ((high >> 32) & _MASK) ^ c1 ^ k0,
            high & _MASK,
            ((low >> 32) & _MASK) ^ c3 ^ k1,
            low & _MASK,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0.expand(seeds.shape[0], vocab)


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
) -> torch.Tensor:
    x = logits.float().nan_to_num(nan=-torch.inf, posinf=_FINITE, neginf=-torch.inf)
    # Of equal logits torch.max may give any; the lowest id is the first that is True.
    best = x.amax(-1, keepdim=True)
    ids = (x == best).to(torch.uint8).argmax(-1)
    rows = (temperature > 0).nonzero().squeeze(-1)
    if rows.numel() == 0:
        return ids
    # How far each logit lies below the largest: 0 is the best token, infinity is one that cannot be drawn.
    depth = (best[rows].clamp(min=-_FINITE) - x[rows]) / temperature[rows, None]
    if any_filter:
        limit = _depth_limit(depth, top_k[rows], top_p[rows], min_p[rows])
        depth = depth.masked_fill(depth > limit, torch.inf)
    words = philox_reference(seeds[rows], positions[rows], logits.shape[1])
    # u and 1 - u are equally likely; the spacing of floats is finest where the noise is largest if 1 - u is the word.
    noise = -torch.log(-torch.log1p(-(words.double() + 0.5) * 2.0**-32))
    ids[rows] = (noise - depth).argmax(-1)
    return ids


def _depth_limit(depth: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Largest depth that the filters keep, [R, 1]; tokens level with the last one kept are kept too."""
    vocab = depth.shape[1]
    ordered, _ = depth.sort(-1)
    counts = torch.where((top_k <= 0) | (top_k > vocab), vocab, top_k).long()
    limit = ordered.gather(-1, counts[:, None] - 1)
    weights = torch.exp(-ordered.double()).masked_fill(ordered > limit, 0)
    before = weights.cumsum(-1) - weights
    # A token stays while the mass of those before it falls short of top_p; the first always does.
    reached = (before < top_p[:, None] * weights.sum(-1, keepdim=True)).sum(-1, keepdim=True).clamp(min=1)
    nucleus = ordered.gather(-1, reached - 1)
    limit = torch.where(top_p[:, None] < 1, torch.minimum(limit, nucleus), limit)
    return torch.minimum(limit, -torch.log(min_p[:, None]))


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
) -> torch.Tensor:
    """Ids [S] (int64) drawn from logits [S, V]; every other argument is [S].

    temperature (float32) 0 takes the largest logit, the lowest id among equals. Filters act in this order on
    logits / temperature: top_k (int32, 0 is all), top_p (float32, 1 is all) of what is left, min_p (float32, 0 is all)
    times the largest probability; tokens level with the last one kept are kept. seeds and positions (int64) choose the
    noise. A NaN logit is never drawn. any_filter=False promises that no row filters, and saves the passes.
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
    return sample_reference(logits, temperature, top_k, top_p, min_p, seeds, positions, any_filter=any_filter)
