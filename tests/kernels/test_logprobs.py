from __future__ import annotations

import pytest
import torch

from kernel_cases import DEVICE, DTYPES, by_mode
from millrace_kernels import logprobs
from millrace_kernels.logprobs import logprobs_reference

VOCABS = by_mode(gpu=[1, 7, 4097, 128256, 262147], interpreter=[1, 7, 8195], reference=[1, 7, 4097])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", VOCABS)
def test_are_those_of_log_softmax(vocab: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(6, vocab + 5, device=DEVICE) * 5).to(dtype)[:, :vocab]
    rows, ids = torch.tensor([5, 0, 3], device=DEVICE), torch.randint(0, vocab, (6,), device=DEVICE)
    chosen, top_ids, top = logprobs(logits, rows, ids, 20)
    exact = logits[rows].double().log_softmax(-1)
    torch.testing.assert_close(chosen.double(), exact.gather(-1, ids[rows, None]).squeeze(-1), atol=2e-5, rtol=1e-5)
    n = min(20, vocab)
    torch.testing.assert_close(top.double(), exact.sort(descending=True).values[:, :n], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(exact.gather(-1, top_ids), top.double(), atol=2e-5, rtol=1e-5)
    assert torch.equal(top_ids, logprobs_reference(logits, rows, ids, 20)[1])
    assert (top.exp().sum(-1) <= 1 + 1e-5).all()


@pytest.mark.parametrize("top", [0, 1, 5])
def test_each_row_alone_gives_what_it_gives_in_a_batch(top: int) -> None:
    vocab = 4096 + 100
    # Steps of a half: most are equal to some others.
    logits = (torch.randn(4, vocab, device=DEVICE) * 4).round() / 2
    ids, every = torch.randint(0, vocab, (4,), device=DEVICE), torch.arange(4, device=DEVICE)
    together = logprobs(logits, every, ids, top)
    for row in range(4):
        alone = logprobs(logits[row : row + 1], every[:1], ids[row : row + 1], top)
        assert all(torch.equal(one[0], many[row]) for one, many in zip(alone, together, strict=True))
    assert together[1].shape == together[2].shape == (4, top)


def test_of_equals_the_lower_id_comes_first_and_both_zeros_are_equal() -> None:
    logits = torch.full((1, 5000), -3.0, device=DEVICE)
    logits[0, [4999, 4500, 30]] = torch.tensor([0.0, 0.0, -0.0], device=DEVICE)
    _, ids, _ = logprobs(
        logits, torch.zeros(1, dtype=torch.int64, device=DEVICE), torch.zeros_like(logits[:, 0]).long(), 5
    )
    assert ids.tolist() == [[30, 4500, 4999, 0, 1]]


def test_impossible_tokens_are_minus_infinity() -> None:
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor([[nan, 1.0, -inf, 1.0], [-inf, nan, -inf, -inf], [0.0, inf, 0.0, nan]], device=DEVICE)
    ids, rows = torch.tensor([2, 0, 1], device=DEVICE), torch.arange(3, device=DEVICE)
    chosen, top_ids, top = logprobs(logits, rows, ids, 4)
    assert chosen.tolist() == [-inf, -inf, 0.0]
    assert top_ids.tolist() == [[1, 3, 0, 2], [0, 1, 2, 3], [1, 0, 2, 3]]
    half = torch.tensor(0.5).log().item()
    torch.testing.assert_close(top[0], torch.tensor([half, half, -inf, -inf], device=DEVICE))
    assert top[1].tolist() == [-inf] * 4
    assert top[2, 0] == 0.0
    assert (top[2, 1:] < -1e37).all()
    assert not top.isnan().any()


def test_wrong_arguments_are_named() -> None:
    logits, rows = torch.zeros(2, 5, device=DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    with pytest.raises(ValueError, match="ids has shape"):
        logprobs(logits, rows, rows, 1)
    with pytest.raises(TypeError, match=r"rows is torch\.int32"):
        logprobs(logits, rows.int(), rows.repeat(2), 1)
    with pytest.raises(ValueError, match="top is -1"):
        logprobs(logits, rows, rows.repeat(2), -1)
    assert [t.shape[0] for t in logprobs(logits, rows[:0], rows.repeat(2), 2)] == [0, 0, 0]
