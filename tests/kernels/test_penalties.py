"""Counting tokens and penalising those that occurred, against plain loops, and sampling from what comes of it."""

from __future__ import annotations

import pytest
import torch

from kernel_cases import DEVICE, DTYPES, by_mode
from millrace_kernels import apply_penalties, count_tokens, sample
from millrace_kernels.apply_penalties import IN_PROMPT, MOST_COUNTED, apply_penalties_reference

VOCABS = by_mode(gpu=[1, 7, 5000, 128256], interpreter=[1, 5000], reference=[1, 7, 5000])


def floats(*values: float) -> torch.Tensor:
    return torch.tensor(values, device=DEVICE)


def integers(*values: int) -> torch.Tensor:
    return torch.tensor(values, device=DEVICE)


def some_counts(rows: int, vocab: int) -> torch.Tensor:
    counts = torch.randint(0, 4, (rows, vocab), device=DEVICE).short()
    return torch.where(torch.rand(rows, vocab, device=DEVICE) < 0.3, counts + IN_PROMPT, counts).contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", VOCABS)
def test_equals_the_reference_on_rows_of_a_wider_view(vocab: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(5, vocab + 3, device=DEVICE) * 9).to(dtype)[:, :vocab]
    before = logits.clone()
    counts, rows, counts_rows = some_counts(9, vocab), integers(4, 0, 2), integers(1, 8, 5)
    settings = floats(1.3, 1.0, 0.7), floats(0.0, 0.5, -2.0), floats(0.25, 0.0, 2.0)
    out = apply_penalties(logits, rows, counts, counts_rows, *settings)
    expected = apply_penalties_reference(logits, rows, counts, counts_rows, *settings)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-6)
    assert torch.equal(logits, before)
    assert apply_penalties(logits, rows[:0], counts, rows[:0], *(s[:0] for s in settings)).shape == (0, vocab)


def test_each_penalty_does_what_its_definition_reads() -> None:
    logits = floats(4.0, -4.0, 4.0, -4.0, 4.0, float("-inf"), float("inf"), float("nan")).repeat(4, 1)
    seen = [IN_PROMPT, IN_PROMPT, 3, 1, 0, 2, IN_PROMPT + 1, 1]
    counts = torch.tensor([seen], dtype=torch.int16, device=DEVICE)
    settings = floats(2.0, 1.0, 1.0, 2.0), floats(0.0, 0.5, 0.0, 0.5), floats(0.0, 0.0, 1.5, 1.5)
    out = apply_penalties(logits, torch.arange(4, device=DEVICE), counts, integers(0, 0, 0, 0), *settings)
    inf, nan = float("inf"), float("nan")
    expected = floats(
        *(2.0, -8.0, 2.0, -8.0, 4.0, -inf, inf, nan),
        *(4.0, -4.0, 2.5, -4.5, 4.0, -inf, inf, nan),
        *(4.0, -4.0, 2.5, -5.5, 4.0, -inf, inf, nan),
        *(2.0, -8.0, -1.0, -10.0, 4.0, -inf, inf, nan),
    ).view(4, 8)
    torch.testing.assert_close(out, expected, equal_nan=True)


def test_a_penalty_smaller_than_a_step_of_half_precision_counts() -> None:
    """At 20 a bfloat16 goes in steps of 0.125."""
    logits = torch.full((1, 3), 20.0, device=DEVICE, dtype=DTYPES[-1])
    counts = torch.tensor([[1, 0, 0]], dtype=torch.int16, device=DEVICE)
    out = apply_penalties(logits, integers(0), counts, integers(0), floats(1.0), floats(0.0), floats(0.01))
    torch.testing.assert_close(out, floats(19.99, 20.0, 20.0)[None])


def some_biases(rows: int, width: int, vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids that differ within a row, with some places that have none."""
    ids = torch.stack([torch.randperm(max(width, vocab), device=DEVICE)[:width] for _ in range(rows)]).int()
    empty = (torch.rand(rows, width, device=DEVICE) < 0.4) | (ids >= vocab)
    return ids.masked_fill(empty, -1), torch.randn(rows, width, device=DEVICE) * 30


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("width", [1, 7, 1024])
def test_biases_equal_the_reference(vocab: int, width: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(5, vocab + 3, device=DEVICE) * 9).to(dtype)[:, :vocab]
    counts, rows, counts_rows = some_counts(9, vocab), integers(4, 0, 2), integers(1, 8, 5)
    settings = floats(1.3, 1.0, 0.7), floats(0.0, 0.5, -2.0), floats(0.25, 0.0, 2.0)
    biases = some_biases(9, width, vocab)
    out = apply_penalties(logits, rows, counts, counts_rows, *settings, *biases)
    expected = apply_penalties_reference(logits, rows, counts, counts_rows, *settings, *biases)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-6)


def test_a_bias_comes_before_penalties_and_is_not_rounded() -> None:
    """A repetition penalty multiplies what a bias has made negative."""
    logits = torch.tensor([[4.0, 4.0, 20.0, 4.0, float("-inf")]], device=DEVICE, dtype=DTYPES[-1])
    counts = torch.tensor([[0] * 5, [IN_PROMPT, 2, 0, 0, 0]], dtype=torch.int16, device=DEVICE)
    ids = torch.tensor([[3, 0, 1, 2, 4], [0, 1, -1, 2, 4]], dtype=torch.int32, device=DEVICE)
    biases = torch.tensor([[9.0] * 5, [-6.0, 1.0, 9.0, 0.01, 100.0]], device=DEVICE)
    settings = floats(2.0), floats(0.5), floats(0.25)
    out = apply_penalties(logits, integers(0), counts, integers(1), *settings, ids, biases)
    expected = floats(-4.0, 5.0 / 2 - 0.5 * 2 - 0.25, 20.01, 4.0, float("-inf"))[None]
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0.0)


def test_counting_adds_one_where_it_should_and_stops_at_the_most() -> None:
    rows, vocab = 300, 50
    counts = some_counts(rows, vocab)
    counts[7, 3], counts[8, 4] = MOST_COUNTED, IN_PROMPT + MOST_COUNTED
    before = counts.clone()
    ids = torch.randint(0, vocab, (rows,), device=DEVICE)
    ids[0], ids[1] = 3, 4
    at, counts_rows = torch.arange(0, rows, 2, device=DEVICE), torch.randperm(rows, device=DEVICE)[: rows // 2]
    at[:2] = integers(0, 1)
    counts_rows = torch.cat((integers(7, 8), counts_rows[(counts_rows != 7) & (counts_rows != 8)]))[: len(at)]
    at = at[: len(counts_rows)]
    count_tokens(counts, counts_rows, ids, at)
    expected = before.clone()
    for row, place in zip(counts_rows.tolist(), at.tolist(), strict=True):
        if row not in (7, 8):
            expected[row, ids[place]] += 1
    assert torch.equal(counts, expected)
    count_tokens(counts, counts_rows[:0], ids, at[:0])
    assert torch.equal(counts, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("any_filter", [False, True])
def test_penalised_rows_stand_for_their_own_and_no_others(dtype: torch.dtype, any_filter: bool) -> None:
    rows, vocab = 4, 4096 + 30
    logits, penalised = (torch.randn(n, vocab, device=DEVICE) * 3 for n in (rows, 2))
    logits = logits.to(dtype)
    heat = floats(0.8, 0.0, 1.0, 0.0)
    integer = torch.arange(rows, device=DEVICE)
    one = floats(1.0, 1.0, 1.0, 1.0)
    settings = heat, integer.int() * 0, one * 0.9 if any_filter else one, one * 0, integer, integer
    which = torch.tensor([1, -1, -1, 0], dtype=torch.int32, device=DEVICE)
    drawn = sample(logits, *settings, any_filter=any_filter, penalised=penalised, penalised_row=which)
    mixed = logits.float().clone()
    mixed[0], mixed[3] = penalised[1], penalised[0]
    assert torch.equal(drawn, sample(mixed, *settings, any_filter=any_filter))
    assert not torch.equal(drawn, sample(logits, *settings, any_filter=any_filter))


def test_wrong_arguments_are_named() -> None:
    logits, counts = torch.zeros(2, 5, device=DEVICE), torch.zeros(2, 5, dtype=torch.int16, device=DEVICE)
    one = floats(1.0)
    with pytest.raises(ValueError, match="counts has shape"):
        apply_penalties(logits, integers(0), counts[:, :4], integers(0), one, one, one)
    with pytest.raises(TypeError, match=r"presence is torch\.float64"):
        apply_penalties(logits, integers(0), counts, integers(0), one, one, one.double())
    ids, biases = torch.zeros(2, 3, dtype=torch.int32, device=DEVICE), torch.zeros(2, 3, device=DEVICE)
    penalties = logits, integers(0), counts, integers(0), one, one, one
    with pytest.raises(ValueError, match="bias_ids and biases go together"):
        apply_penalties(*penalties, ids)
    with pytest.raises(ValueError, match="biases has shape"):
        apply_penalties(*penalties, ids, biases[:, :2].contiguous())
    with pytest.raises(TypeError, match=r"bias_ids is torch\.int64"):
        apply_penalties(*penalties, ids.long(), biases)
    with pytest.raises(TypeError, match=r"counts is torch\.int32"):
        count_tokens(counts.int(), integers(0), integers(0), integers(0))
    settings = (
        floats(1.0, 1.0),
        integers(0, 0).int(),
        floats(1.0, 1.0),
        floats(0.0, 0.0),
        integers(0, 0),
        integers(0, 0),
    )
    with pytest.raises(ValueError, match="go together"):
        sample(logits, *settings, penalised=logits)
