"""Draw one token id a row: temperature, top-k, top-p, min-p, and a counter random generator.

The draw is Gumbel-max: the id whose logit plus Gumbel noise is largest. The noise of (seed, position, id) is a pure
function of those three, so that a result depends neither on the batch nor on when or where it is computed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._dependent import await_inputs, dependent_launch
from ._gumbel import gumbel, gumbel_reference, philox_reference, philox_word
from ._launch import check_dtype, check_float, check_rows, check_same_device, check_shape, multiprocessors, use_triton

_FINITE = torch.finfo(torch.float32).max
#: Temperatures between 0 and this act as this, so that dividing by one stays finite.
_COLDEST = 1e-30
#: The noise lies between -3.2 and 22.9, so that a token this far below the best, in units of temperature, never wins.
_OUT_OF_REACH = 27.0
#: Programs a multiprocessor into which unfiltered rows are cut.
_PROGRAMS = 8


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
    best = x.amax(-1, keepdim=True).clamp(min=-_FINITE)
    # How far each logit lies below the largest: 0 is the best token, infinity is one that cannot be drawn.
    gap = best - x
    ids = gap.argmin(-1)
    rows = (temperature > 0).nonzero().squeeze(-1)
    if rows.numel() == 0:
        return ids
    gap, heat = gap[rows], temperature[rows, None].clamp(min=_COLDEST)
    depth = gap / heat
    candidate = depth <= _OUT_OF_REACH
    if any_filter:
        candidate &= gap <= _widest_gap(gap, heat, top_k[rows], top_p[rows], min_p[rows])
    row, token = candidate.nonzero(as_tuple=True)
    noise = gumbel_reference(philox_reference(seeds[rows][row], positions[rows][row], token))
    score = torch.full_like(depth, -torch.inf, dtype=torch.float64)
    score[row, token] = noise - depth[row, token]
    ids[rows] = score.argmax(-1)
    return ids


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


@triton.jit
def _load_logits(row_ptr, ids, vocab, FINITE: tl.constexpr):
    x = tl.load(row_ptr + ids, mask=ids < vocab, other=float("-inf")).to(tl.float32)
    return tl.minimum(tl.where(x == x, x, float("-inf")), FINITE)


@triton.jit
def _best(row_ptr, begin, end, vocab, FINITE: tl.constexpr, BLOCK: tl.constexpr):
    """(largest logit, its lowest id) of the ids from `begin` to `end`."""
    top, top_id = tl.full([BLOCK], float("-inf"), tl.float32), begin + tl.arange(0, BLOCK)
    for start in tl.range(begin, end, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        x = _load_logits(row_ptr, ids, vocab, FINITE)
        top_id = tl.where(x > top, ids, top_id)
        top = tl.maximum(x, top)
    best = tl.max(top, axis=0)
    return best, tl.min(tl.where(top == best, top_id, vocab), axis=0)


@triton.jit
def _mass(row_ptr, vocab, best, limit, decay, FINITE: tl.constexpr, BLOCK: tl.constexpr):
    """Unnormalised probability of the tokens up to a limit."""
    mass = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, vocab, BLOCK):
        gap = best - _load_logits(row_ptr, start + tl.arange(0, BLOCK), vocab, FINITE)
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
            gap = best - _load_logits(row_ptr, start + tl.arange(0, BLOCK), vocab, FINITE)
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
def _draw(
    row_ptr, begin, end, vocab, best, best_id, limit, heat, seed, position, FINITE: tl.constexpr, BLOCK: tl.constexpr
):
    """(largest score, its lowest id) of the ids from `begin` to `end` that are within the limit."""
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    top_id = tl.zeros([BLOCK], tl.int32) + best_id
    for start in tl.range(begin, end, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        gap = best - _load_logits(row_ptr, ids, vocab, FINITE)
        kept = gap.to(tl.int32, bitcast=True) <= limit
        # After a filter most blocks hold nothing, and their noise need not be made.
        if tl.max(kept.to(tl.int32), axis=0) > 0:
            score = tl.where(kept, gumbel(philox_word(seed, ids, position)) - gap / heat, float("-inf"))
            top_id = tl.where(score > top, ids, top_id)
            top = tl.maximum(score, top)
    score = tl.max(top, axis=0)
    return score, tl.min(tl.where(top == score, top_id, vocab), axis=0)


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
    best_ptr,
    best_id_ptr,
    vocab,
    row_stride,
    num_splits,
    chunk,
    FINITE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a (row, split)."""
    await_inputs(PDL)
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    begin = split * chunk
    end = tl.minimum(begin + chunk, vocab)
    best, best_id = _best(logits_ptr + row * row_stride, begin, end, vocab, FINITE, BLOCK)
    tl.store(best_ptr + row * num_splits + split, best)
    tl.store(best_id_ptr + row * num_splits + split, best_id)


@triton.jit(do_not_specialize=["num_splits", "chunk"])
def _draw_kernel(
    logits_ptr,
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
    FINITE: tl.constexpr,
    COLDEST: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS_PAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a (row, split), without filters: the sums are those of _sample_kernel, bit by bit."""
    await_inputs(PDL)
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    best, best_id = _first_of(best_ptr, best_id_ptr, row, num_splits, vocab, SPLITS_PAD)
    temperature = tl.load(temperature_ptr + row)
    score, score_id = tl.full([], float("-inf"), tl.float32), best_id
    if temperature > 0:
        begin = split * chunk
        end = tl.minimum(begin + chunk, vocab)
        seed, position = tl.load(seeds_ptr + row), tl.load(positions_ptr + row)
        score, score_id = _draw(
            logits_ptr + row * row_stride,
            begin,
            end,
            vocab,
            tl.maximum(best, -FINITE),
            best_id,
            tl.full([], 0x7F800000, tl.int32),
            tl.maximum(temperature, COLDEST),
            seed,
            position,
            FINITE,
            BLOCK,
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


@triton.jit
def _sample_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seeds_ptr,
    positions_ptr,
    ids_ptr,
    vocab,
    row_stride,
    FINITE: tl.constexpr,
    COLDEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    best, best_id = _best(row_ptr, 0, vocab, vocab, FINITE, BLOCK)
    temperature = tl.load(temperature_ptr + row)
    if not temperature > 0:
        tl.store(ids_ptr + row, best_id.to(tl.int64))
        return

    best = tl.maximum(best, -FINITE)
    heat = tl.maximum(temperature, COLDEST)
    decay = -1.4426950408889634 / heat
    limit = tl.full([], 0x7F800000, tl.int32)
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    min_p = tl.load(min_p_ptr + row)
    if (top_k > 0) & (top_k < vocab):
        limit = _narrow(row_ptr, vocab, best, limit, decay, top_k.to(tl.float32), False, FINITE, BLOCK)
    if top_p < 1.0:
        target = tl.maximum(top_p * _mass(row_ptr, vocab, best, limit, decay, FINITE, BLOCK), 1e-30)
        limit = _narrow(row_ptr, vocab, best, limit, decay, target, True, FINITE, BLOCK)
    if min_p > 0.0:
        widest = tl.maximum(-tl.log(min_p) * heat, 0.0)
        limit = tl.minimum(limit, widest.to(tl.int32, bitcast=True))

    seed, position = tl.load(seeds_ptr + row), tl.load(positions_ptr + row)
    _, chosen = _draw(row_ptr, 0, vocab, vocab, best, best_id, limit, heat, seed, position, FINITE, BLOCK)
    tl.store(ids_ptr + row, chosen.to(tl.int64))


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
    if not use_triton(logits):
        return sample_reference(logits, temperature, top_k, top_p, min_p, seeds, positions, any_filter=any_filter)
    rows, vocab = logits.shape
    ids = torch.empty_like(seeds)
    if rows == 0:
        return ids
    block = min(4096, triton.next_power_of_2(vocab))
    if not any_filter:
        _launch_unfiltered(logits, temperature, seeds, positions, ids, block)
        return ids
    _sample_kernel[(rows,)](
        logits,
        temperature,
        top_k,
        top_p,
        min_p,
        seeds,
        positions,
        ids,
        vocab,
        logits.stride(0),
        FINITE=_FINITE,
        COLDEST=_COLDEST,
        BLOCK=block,
        num_warps=max(1, min(16, block // 256)),
    )
    return ids


def _launch_unfiltered(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    ids: torch.Tensor,
    block: int,
) -> None:
    """Cuts rows, so that a few of them fill the device: the largest logit, the largest score, the id."""
    rows, vocab = logits.shape
    blocks = triton.cdiv(vocab, block)
    wanted = max(1, min(blocks, triton.cdiv(_PROGRAMS * multiprocessors(logits), rows)))
    chunk = triton.cdiv(blocks, wanted) * block
    splits, warps, pad = triton.cdiv(vocab, chunk), max(1, min(16, block // 256)), triton.next_power_of_2(blocks)
    best, score = (logits.new_empty(rows, splits, dtype=torch.float32) for _ in range(2))
    best_id, score_id = (logits.new_empty(rows, splits, dtype=torch.int32) for _ in range(2))
    row_stride, grid, launch = logits.stride(0), (rows, splits), dependent_launch(logits)
    _best_kernel[grid](
        logits, best, best_id, vocab, row_stride, splits, chunk, FINITE=_FINITE, BLOCK=block, num_warps=warps, **launch
    )
    _draw_kernel[grid](
        logits,
        temperature,
        seeds,
        positions,
        best,
        best_id,
        score,
        score_id,
        vocab,
        row_stride,
        splits,
        chunk,
        FINITE=_FINITE,
        COLDEST=_COLDEST,
        BLOCK=block,
        SPLITS_PAD=pad,
        num_warps=warps,
        **launch,
    )
    _pick_kernel[(rows,)](score, score_id, ids, vocab, splits, SPLITS_PAD=pad, num_warps=1, **launch)
