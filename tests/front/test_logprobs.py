"""Log-probabilities stay beside their tokens: through stop strings, checkpoints and their texts."""

from __future__ import annotations

import pytest

from fake_engine import likely_of
from front_parts import job_of
from millrace_schemas import FinishReason, Sampling
from millrace_worker.frames import Likely
from millrace_worker.stream.checkpoint import read_words, record_bytes, token_bytes, words_from

IDS = [0, 1, 2, 3, 4, 5, 6]


def likely(ids: list[int], top: int = 2) -> list[Likely]:
    return [likely_of(token, top) for token in ids]


@pytest.mark.parametrize("top", [None, 0, 1, 20])
def test_a_checkpoint_gives_back_what_was_stored(top: int | None) -> None:
    tokens = [0, 7, 2**31 - 1]
    stored = [] if top is None else [Likely(-1.25, [2**31 - 1] * top, [-0.5] * top), *likely([7, 9], top)]
    data = token_bytes(tokens, stored or None, top)
    assert len(data) == 3 * record_bytes(top)
    assert read_words(words_from(data), top) == (tokens, stored)
    # A torn record is left out.
    assert read_words(words_from(data[:-1]), top) == (tokens[:2], stored[:2])


def test_fewer_likely_tokens_than_asked_for() -> None:
    stored = [Likely(-0.5, [3, 1], [-0.5, -2.0]), Likely(-0.75)]
    assert read_words(words_from(token_bytes([3, 1], stored, 5)), 5) == ([3, 1], stored)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("cut", range(8))
def test_a_stop_string_ends_both(cut: int, stream: bool) -> None:
    """Also when the checkpoint holds what is behind it."""
    sampling = Sampling(max_tokens=20, stop=("cd",), logprobs=2)
    before = words_from(token_bytes(IDS[:cut], likely(IDS[:cut]), 2))
    job = job_of(sampling=sampling, stream=stream, checkpoint=before)
    if job.resume() is None:
        assert job.take(IDS[cut:], likely(IDS[cut:]), ended_by_token=False)
    assert job.logprobs is not None
    # Letters are released one token late, so the token after "d" completes it.
    assert job.generated == IDS[:5]
    assert job.logprobs.likely == likely(IDS[:5])
    told = job.logprobs.told()
    assert "".join(token.token for token in told) == "abcde"
    assert [token.bytes for token in told[:2]] == [(97,), (98,)]
    assert [one.token_id for one in told[3].top_logprobs] == [3, 4]


def test_a_checkpoint_may_hold_the_whole_answer() -> None:
    before = words_from(token_bytes([0, 1, 9], likely([0, 1, 9]), 2))
    job = job_of(sampling=Sampling(max_tokens=20, logprobs=2), checkpoint=before, stop_token_ids=(9,))
    assert job.resume() is FinishReason.STOP
    assert job.logprobs is not None
    assert [token.token_id for token in job.logprobs.told()] == [0, 1, 9]


def test_without_asking_there_are_none() -> None:
    job = job_of(checkpoint=(1, 2))
    job.take([3], ended_by_token=False)
    assert job.logprobs is None
    assert job.generated == [1, 2, 3]
