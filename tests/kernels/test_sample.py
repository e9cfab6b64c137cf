from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from kernel_cases import DEVICE, DTYPES, INTERPRETED, KERNELS, by_mode
from millrace_kernels import sample
from millrace_kernels._gumbel import gumbel, gumbel_reference, philox_reference, philox_words
from millrace_kernels._sample_groups import group_size
from millrace_kernels._sample_limit import launch_limit
from millrace_kernels.sample import sample_reference

NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seeds": 0, "positions": 0}
DTYPE_OF = {"top_k": torch.int32, "seeds": torch.int64, "positions": torch.int64}


def settings(rows: int, **given: object) -> dict[str, torch.Tensor]:
    """A value or a list of values per argument; the rest change nothing."""
    made = {}
    for name, neutral in NEUTRAL.items():
        value = torch.as_tensor(given.get(name, neutral)).to(DTYPE_OF.get(name, torch.float32))
        made[name] = value.expand(rows).contiguous().to(DEVICE)
    return made


@triton.jit
def _noise_kernel(seeds_ptr, positions_ptr, words_ptr, gumbel_ptr, vocab, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    ids = tl.arange(0, BLOCK)
    word = philox_words(tl.load(seeds_ptr + row), 0, tl.load(positions_ptr + row), BLOCK)
    tl.store(words_ptr + row * vocab + ids, word.to(tl.int64), mask=ids < vocab)
    tl.store(gumbel_ptr + row * vocab + ids, gumbel(word), mask=ids < vocab)


SEEDS = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF, 2**32, 42])
POSITIONS = torch.tensor([0, 2**32, 2**31, 7, 2**40 + 3, 2**32 - 1, 1, 131071])


def test_reference_words_are_those_of_philox() -> None:
    """The first is Random123's known answer for a counter and key of zeros; the others come from plain integers."""
    assert int(philox_reference(*torch.zeros(3, dtype=torch.int64))) == 0x6627E8D5
    words = philox_reference(SEEDS[:, None], POSITIONS[:, None], torch.arange(9)).tolist()
    mask = 2**32 - 1
    for row, (seed, position) in enumerate(zip(SEEDS.tolist(), POSITIONS.tolist(), strict=True)):
        for token in range(9):
            c, k = [token // 4, position & mask, position >> 32 & mask, 0], [seed & mask, seed >> 32 & mask]
            for _ in range(10):
                a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
                c = [b >> 32 ^ c[1] ^ k[0], b & mask, a >> 32 ^ c[3] ^ k[1], a & mask]
                k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
            assert words[row][token] == c[token % 4]


@pytest.mark.skipif(not KERNELS, reason="there is no kernel to compare")
def test_kernel_words_equal_those_of_the_reference_bit_for_bit() -> None:
    vocab = 1000
    seeds, positions = SEEDS.to(DEVICE), POSITIONS.to(DEVICE)
    words = torch.empty(len(SEEDS), vocab, dtype=torch.int64, device=DEVICE)
    noise = torch.empty(len(SEEDS), vocab, device=DEVICE)
    _noise_kernel[(len(SEEDS),)](seeds, positions, words, noise, vocab, BLOCK=1024)
    ids = torch.arange(vocab, device=DEVICE)
    assert torch.equal(words, philox_reference(seeds[:, None], positions[:, None], ids))
    torch.testing.assert_close(noise.double(), gumbel_reference(words), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", by_mode(gpu=[1, 7, 5000, 128256], interpreter=[1, 5000], reference=[1, 7, 5000]))
def test_temperature_zero_takes_the_lowest_of_the_largest(vocab: int, dtype: torch.dtype) -> None:
    logits = torch.randn(4, vocab, device=DEVICE).to(dtype)
    # Far apart, and in one lane of different blocks, whatever power of two the kernel's block is.
    for tied in (vocab // 7, vocab // 7 + 1024, vocab // 7 + 4096, vocab - 1):
        logits[:, min(tied, vocab - 1)] = 9.0
    ids = sample(logits, **settings(4, temperature=0.0, top_k=1, top_p=0.5, min_p=0.5, seeds=SEEDS[:4]))
    assert ids.tolist() == [vocab // 7] * 4


def test_seed_position_and_nothing_else_decide() -> None:
    """Each row alone gives what it gives in a batch, at any place in it, and in a view of wider rows."""
    logits = torch.randn(8, 300, device=DEVICE).repeat(1, 2)[:, :300]
    chosen = settings(
        8,
        temperature=[1.0, 0.0, 0.7, 1.3, 5.0, 1.0, 0.1, 2.0],
        top_k=[0, 0, 5, 0, 40, 0, 3, 0],
        top_p=[1.0, 1.0, 1.0, 0.9, 0.5, 0.3, 1.0, 1.0],
        min_p=[0.0, 0.0, 0.0, 0.0, 0.0, 0.1, 0.05, 0.2],
        seeds=SEEDS,
        positions=POSITIONS,
    )
    together = sample(logits, **chosen)
    assert torch.equal(together, sample(logits, **chosen))
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4], device=DEVICE)
    assert torch.equal(together[order], sample(logits[order], **{k: v[order] for k, v in chosen.items()}))
    for row in range(8):
        alone = sample(logits[row : row + 1], **{k: v[row : row + 1] for k, v in chosen.items()})
        assert int(alone) == int(together[row])


@pytest.mark.parametrize("varied", ["seeds", "positions"])
def test_draws_follow_the_softmax(varied: str) -> None:
    """Pearson's chi-square over 12 tokens; 36.1 is exceeded once in 5,000 times with 11 degrees of freedom.

    Where programs are slow, the kernel gives some of the draws that the reference gives, which are counted all.
    """
    draws, vocab = 40000, 12
    logits = torch.linspace(-1.5, 1.5, vocab, device=DEVICE).expand(draws, vocab)
    rows = settings(draws, temperature=1.4, **{varied: torch.arange(draws)})
    if INTERPRETED:
        ids, some = sample_reference(logits, **rows, any_filter=False), slice(0, draws, 999)
        chosen = {name: value[some].contiguous() for name, value in rows.items()}
        for any_filter in (False, True):
            assert torch.equal(sample(logits[some], **chosen, any_filter=any_filter), ids[some])
    else:
        ids = sample(logits, **rows, any_filter=False)
    expected = (logits[0].double() / 1.4).softmax(-1) * draws
    counts = torch.bincount(ids, minlength=vocab)
    assert counts.sum() == draws
    assert ((counts - expected) ** 2 / expected).sum() < 36.1


def test_draws_over_groups_follow_the_softmax() -> None:
    """As above for ids that are drawn in two stages: groups of very different weights, one of them cut short.

    93.2 is exceeded once in 5,000 times with 51 degrees of freedom.
    """
    draws, vocab, bins = 40000, 700, 52
    x = torch.linspace(-2, 3, vocab, device=DEVICE).sin() * 3
    x[300:] += 1.5
    x[5] = 6.0
    rows = settings(draws, temperature=0.8, seeds=torch.arange(draws) * 3 + 1, positions=torch.arange(draws))
    some = slice(0, draws, 9999 if INTERPRETED else 1)
    chosen = {name: value[some].contiguous() for name, value in rows.items()}
    ids = sample_reference(x.expand(draws, vocab), **rows, any_filter=False)
    drawn = sample(x.expand(len(ids[some]), vocab), **chosen, any_filter=False)
    assert (drawn == ids[some]).float().mean() > 0.999
    # Bins of about equal weight, and the one id that has more by itself.
    expected = (x.double() / 0.8).softmax(-1) * draws
    edge = (expected.cumsum(0) - expected / 2) / draws * (bins - 1)
    bin_of = torch.where(torch.arange(vocab, device=DEVICE) == 5, bins - 1, edge.long().clamp(max=bins - 2))
    wanted = torch.zeros(bins, dtype=torch.float64, device=DEVICE).index_add_(0, bin_of, expected)
    counts = torch.bincount(bin_of[ids], minlength=bins)
    filled = wanted > 5
    assert (((counts - wanted) ** 2 / wanted)[filled]).sum() < 93.2


def kept_by_sorting(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """Which tokens of one row the filters keep, written as their definitions read."""
    x = logits.double() / temperature
    kept = torch.ones_like(x, dtype=torch.bool)
    if 0 < top_k < len(x):
        kept = x >= x.sort(descending=True).values[top_k - 1]
    p = x.masked_fill(~kept, float("-inf")).softmax(-1)
    if top_p < 1:
        mass, threshold = 0.0, 1.0
        for value in p.sort(descending=True).values.tolist():
            threshold, mass = value, mass + value
            if mass >= top_p:
                break
        kept = kept & (p >= threshold)
    return kept & (p >= min_p * p.max())


FILTERS = [
    (1.0, 1, 1.0, 0.0),
    (1.0, 3, 1.0, 0.0),
    (2.0, 50, 1.0, 0.0),
    (1.0, 2599, 1.0, 0.0),
    (1.0, 2600, 1.0, 0.0),
    (1.0, 100000, 1.0, 0.0),
    (1.0, 0, 0.9, 0.0),
    (0.7, 0, 0.5, 0.0),
    (3.0, 0, 0.99, 0.0),
    (1.0, 0, 1e-6, 0.0),
    (1.0, 0, 0.0, 0.0),
    (1.0, 0, 1.0, 0.1),
    (2.5, 0, 1.0, 0.02),
    (1.0, 0, 1.0, 1.0),
    (1.5, 40, 0.8, 0.0),
    (1.5, 40, 0.95, 0.2),
    (1.5, 5, 0.95, 0.001),
]


@pytest.mark.parametrize("shape", ["normal", "equal", "two levels", "steep", "flat"])
def test_filters_keep_what_sorting_keeps(shape: str) -> None:
    """The noise of an id does not depend on the filters, so the draw is that over the kept tokens alone."""
    # Several groups of ids, of which those that a few tokens lie in are found by their largest.
    vocab, repeats = 2600, by_mode(gpu=[16], interpreter=[1], reference=[8])[0]
    logits = {
        "normal": torch.randn(vocab) * 2,
        "equal": torch.zeros(vocab),
        "two levels": torch.where(torch.arange(vocab) % 5 == 0, 2.0, -1.0),
        "steep": torch.randn(vocab) * 30,
        "flat": torch.randn(vocab) * 1e-3,
    }[shape].to(DEVICE)
    table = list(zip(*FILTERS, strict=True))
    rows = len(FILTERS) * repeats
    names = ("temperature", "top_k", "top_p", "min_p")
    given = {name: torch.tensor(column).repeat(repeats) for name, column in zip(names, table, strict=True)}
    chosen = settings(rows, **given, seeds=torch.arange(rows) * 77 + 5, positions=torch.arange(rows))
    kept = torch.stack([kept_by_sorting(logits, *setting) for setting in FILTERS]).repeat(repeats, 1)
    assert kept.any(-1).all()
    alone = logits.expand(rows, vocab).masked_fill(~kept, float("-inf"))
    expected = sample_reference(alone, **chosen, any_filter=False)
    assert torch.equal(sample(logits.expand(rows, vocab), **chosen), expected)


@pytest.mark.skipif(not KERNELS, reason="the reference looks for no limits in groups")
@pytest.mark.parametrize("shape", ["normal", "two levels", "steep", "flat"])
def test_limits_and_groups_are_those_of_what_is_kept(shape: str) -> None:
    """Every group's largest logit and weight, and not only what one draw shows of them."""
    vocab, size = 2600, group_size(2600)
    logits = {
        "normal": torch.randn(vocab) * 2,
        "two levels": torch.where(torch.arange(vocab) % 5 == 0, 2.0, -1.0),
        "steep": torch.randn(vocab) * 30,
        "flat": torch.randn(vocab) * 1e-3,
    }[shape].to(DEVICE)
    names = ("temperature", "top_k", "top_p", "min_p")
    chosen = settings(len(FILTERS), **dict(zip(names, map(list, zip(*FILTERS, strict=True)), strict=True)))
    kept = torch.stack([kept_by_sorting(logits, *setting) for setting in FILTERS])
    heat = chosen["temperature"][:, None, None]

    def groups_of(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        grouped = torch.nn.functional.pad(x, (0, -vocab % size), value=float("-inf")).view(len(x), -1, size)
        top = grouped.amax(-1)
        gap = (top.clamp(min=-1e30)[:, :, None] - grouped) / heat
        return top, torch.exp(-gap).sum(-1)

    rows = logits.expand(len(FILTERS), vocab)
    top, mass = groups_of(rows)
    limit = launch_limit(rows.contiguous(), None, None, tuple(chosen[name] for name in names), top, mass)
    gap_bits = (logits.max() - rows).contiguous().view(torch.int32)
    assert torch.equal(gap_bits <= limit[:, None], kept)
    wanted_top, wanted_mass = groups_of(rows.masked_fill(~kept, float("-inf")))
    assert torch.equal(top, wanted_top)
    left = wanted_top > float("-inf")
    torch.testing.assert_close(mass[left], wanted_mass[left], atol=1e-4, rtol=1e-4)


def test_without_filters_their_passes_change_nothing() -> None:
    logits = torch.randn(8, 700, device=DEVICE)
    chosen = settings(8, temperature=[0.0, 1.0] * 4, seeds=SEEDS, positions=POSITIONS)
    assert torch.equal(sample(logits, **chosen), sample(logits, **chosen, any_filter=False))


@pytest.mark.parametrize("rows", by_mode(gpu=[1, 2, 9, 300], interpreter=[1, 2], reference=[1, 2, 9]))
def test_rows_that_are_cut_draw_what_whole_ones_draw(rows: int) -> None:
    """Without filters a row is shared by several programs, the more the fewer rows there are."""
    vocab = 3 * 4096 + 50
    logits = torch.randn(rows, vocab, device=DEVICE) * 4
    # Equals in different cuts: the lowest id of them wins.
    logits[0, [4095, 4096, 9000]] = 40.0
    for temperature in (0.0, 1.0, 30.0):
        chosen = settings(rows, temperature=temperature, seeds=torch.arange(rows) + 3, positions=torch.arange(rows))
        drawn = sample(logits, **chosen, any_filter=False)
        assert torch.equal(drawn, sample(logits, **chosen))
        assert torch.equal(drawn, sample_reference(logits, **chosen, any_filter=False))
        if temperature == 0:
            assert drawn[0] == 4095
    logits[0] = float("nan")
    logits[0, 9000] = -7.0
    chosen = settings(rows, seeds=torch.arange(rows), positions=torch.arange(rows))
    assert sample(logits, **chosen, any_filter=False)[0] == 9000
    logits[0] = float("-inf")
    assert sample(logits, **chosen, any_filter=False)[0] == 0


@pytest.mark.parametrize("filters", [{}, {"top_k": 4}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_forbidden_and_broken_logits_are_never_drawn(filters: dict[str, float]) -> None:
    """-inf and NaN are no candidates; of a row with nothing else the answer is its first id."""
    logits = torch.full((4, 40), float("-inf"), device=DEVICE)
    logits[0, 17] = -3.0
    logits[1] = float("nan")
    logits[1, 21] = 1e30
    logits[2, 5] = float("inf")
    chosen = settings(4, **filters, seeds=SEEDS[:4], positions=POSITIONS[:4])
    assert sample(logits, **chosen).tolist() == [17, 21, 5, 0]


def test_temperatures_near_zero_stay_finite() -> None:
    logits = torch.randn(3, 50, device=DEVICE)
    chosen = settings(3, temperature=[1e-38, 1e-20, 1e-5], top_p=0.9, seeds=SEEDS[:3])
    assert torch.equal(sample(logits, **chosen), logits.argmax(-1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference_over_a_whole_vocabulary(dtype: torch.dtype) -> None:
    rows, vocab = by_mode(gpu=[(64, 151936)], interpreter=[(4, 5003)], reference=[(4, 5003)])[0]
    logits = (torch.randn(rows, vocab, device=DEVICE) * 3).to(dtype)
    chosen = settings(
        rows,
        temperature=torch.tensor([0.0, 0.6, 1.0, 1.5]).repeat(rows // 4),
        top_k=torch.tensor([0, 20, 0, 1000]).repeat(rows // 4),
        top_p=torch.tensor([0.5, 0.95, 0.9, 1.0]).repeat(rows // 4),
        min_p=torch.tensor([0.0, 0.0, 0.01, 0.0]).repeat(rows // 4),
        seeds=torch.arange(rows) - rows // 2,
        positions=torch.arange(rows) * 1000,
    )
    assert torch.equal(sample(logits, **chosen), sample_reference(logits, **chosen))
    assert sample(logits[:0], **{k: v[:0] for k, v in chosen.items()}).shape == (0,)


def test_wrong_arguments_are_named() -> None:
    logits, chosen = torch.zeros(2, 5, device=DEVICE), settings(2)
    with pytest.raises(TypeError, match=r"top_k is torch\.int64"):
        sample(logits, **{**chosen, "top_k": chosen["top_k"].long()})
    with pytest.raises(ValueError, match="seeds has shape"):
        sample(logits, **{**chosen, "seeds": chosen["seeds"][:1]})
    with pytest.raises(ValueError, match="no columns"):
        sample(logits[:, :0], **chosen)
