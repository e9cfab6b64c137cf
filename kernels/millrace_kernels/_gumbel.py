"""The noise of the sampler: Philox4x32-10 words and the Gumbel variates made of them, in torch and in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_MASK = 0xFFFFFFFF


def philox_reference(seeds: torch.Tensor, positions: torch.Tensor, ids: torch.Tensor, stream: int = 0) -> torch.Tensor:
    """A word of Philox4x32-10, as int64: that of number id % 4 under key seed and counter (id // 4, position, stream).

    The position's low half comes before its high one. So one run of the generator serves four ids.
    """
    ids, position, k0, k1 = torch.broadcast_tensors(ids, positions, seeds & _MASK, seeds >> 32)
    c0 = ids >> 2
    c1, c2, c3 = position & _MASK, (position >> 32) & _MASK, torch.full_like(position, stream)
    for _ in range(10):
        # Products wrap in int64; their 64 bits are right. Only what is multiplied next must be cut to 32 of them.
        low, high = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0 = (high >> 32).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(_MASK)
        c2 = (low >> 32).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(_MASK)
        c1, c3 = high, low
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    words = torch.stack((c0, c1 & _MASK, c2, c3 & _MASK))
    return words.gather(0, (ids & 3)[None])[0]


def gumbel_reference(words: torch.Tensor) -> torch.Tensor:
    """-log(-log(u)) in float64, where 1 - u = (word + 0.5) / 2^32.

    u and 1 - u are equally likely, and floats are finest near zero: this way round the large noise, which decides the
    draw, has the full resolution of the word.
    """
    return -torch.log(-torch.log1p(-(words.double() + 0.5) * 2.0**-32))


@triton.jit
def philox_words(seed, start, position, BLOCK: tl.constexpr):
    """Words (uint32) for the ids from start (int32) on; start and BLOCK are multiples of 4, seed and position int64."""
    low = (position & 0xFFFFFFFF).to(tl.uint32)
    high = ((position >> 32) & 0xFFFFFFFF).to(tl.uint32)
    counters = start // 4 + tl.arange(0, BLOCK // 4)
    w0, w1, w2, w3 = tl.philox(seed, counters, low, high, tl.zeros_like(low))
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@triton.jit
def philox_firsts(seed, numbers, position, STREAM: tl.constexpr):
    """Of each counter of another stream the first word; numbers are int32."""
    low = (position & 0xFFFFFFFF).to(tl.uint32)
    high = ((position >> 32) & 0xFFFFFFFF).to(tl.uint32)
    word, _, _, _ = tl.philox(seed, numbers, low, high, tl.zeros_like(low) + STREAM)
    return word


@triton.jit
def gumbel(word):
    """The same variate in float32. For u above 31/32 the inner logarithm is a series in 1 - u, right to rounding."""
    rest = (word.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    u = ((word ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    series = rest * (1.0 + rest * (0.5 + rest * (0.33333334 + rest * 0.25)))
    return -tl.log(tl.where(rest < 0.03125, series, -tl.log(u)))
