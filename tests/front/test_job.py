from __future__ import annotations

import asyncio

import pytest

from front_parts import job_of
from millrace_schemas import FinishReason, Sampling, Timings
from millrace_worker.front.outcome import Signature


def text(*ids: int) -> str:
    return "".join(chr(97 + i % 26) for i in ids)


def test_text_is_decoded_once_at_the_end_without_stream_or_stop() -> None:
    job = job_of()
    assert not job.take([0, 1], ended_by_token=False)
    assert not job.take([2, 25], ended_by_token=True)
    assert job.close_text(ended_by_token=True) == "abc"
    assert job.generated == [0, 1, 2, 25]
    assert job.ttft is not None


def test_a_stop_string_ends_at_the_token_that_completes_it() -> None:
    job = job_of(sampling=Sampling(max_tokens=20, stop=("cd",)))
    assert not job.take([0, 1, 2], ended_by_token=False)
    # Letters are released one token late, so the token after "d" completes it.
    assert job.take([3, 4, 5, 6], ended_by_token=False)
    assert job.generated == [0, 1, 2, 3, 4]
    assert job.close_text(ended_by_token=False) == "ab"


def test_no_stop_string_before_min_tokens() -> None:
    job = job_of(sampling=Sampling(max_tokens=20, min_tokens=6, stop=("a",)))
    assert not job.take([0, 0, 0, 0], ended_by_token=False)
    assert job.take([1, 0, 2, 0, 3], ended_by_token=False)
    assert job.close_text(ended_by_token=False) == text(0, 0, 0, 0, 1)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("cut", range(7))
def test_a_resumed_answer_equals_an_undisturbed_one(cut: int, stream: bool) -> None:
    ids = [0, 1, 2, 3, 4, 5]
    sampling = Sampling(max_tokens=20, stop=("xyz",))
    whole, resumed = (
        job_of(sampling=sampling, stream=stream),
        job_of(sampling=sampling, stream=stream, checkpoint=tuple(ids[:cut])),
    )
    whole.take(ids, ended_by_token=False)
    assert resumed.resume() is None
    if ids[cut:]:
        resumed.take(ids[cut:], ended_by_token=False)
    assert resumed.generated == whole.generated
    assert resumed.close_text(ended_by_token=False) == whole.close_text(ended_by_token=False) == "abcdef"


@pytest.mark.parametrize(
    ("checkpoint", "fields", "reason"),
    [
        ((0, 1, 9), {"stop_token_ids": (9,)}, FinishReason.STOP),
        ((0, 1, 9), {"stop_token_ids": (9,), "sampling": Sampling(max_tokens=20, min_tokens=3)}, None),
        ((0, 1, 2), {"max_tokens": 3}, FinishReason.LENGTH),
        ((0, 1, 2, 3, 4), {"sampling": Sampling(max_tokens=20, stop=("bc",))}, FinishReason.STOP),
        ((0, 1), {}, None),
        ((), {}, None),
    ],
)
def test_a_checkpoint_may_hold_a_whole_answer(checkpoint: tuple[int, ...], fields: dict, reason: object) -> None:
    assert job_of(checkpoint=checkpoint, **fields).resume() == reason


def test_a_whole_answer_in_the_checkpoint_reads_like_any_other() -> None:
    by_token = job_of(checkpoint=(0, 1, 9), stop_token_ids=(9,), stream=True)
    assert by_token.resume() is FinishReason.STOP
    assert by_token.close_text(ended_by_token=True) == "ab"
    by_text = job_of(checkpoint=(0, 1, 2, 3, 4), sampling=Sampling(max_tokens=20, stop=("bc",)))
    by_text.resume()
    assert by_text.close_text(ended_by_token=False) == "a"
    assert by_text.generated == [0, 1, 2, 3]


def test_a_sequence_does_not_grow_after_it_was_made() -> None:
    job = job_of()
    sequence = job.sequence(4)
    job.take([1], ended_by_token=False)
    assert sequence.generated == []
    assert job.sequence(5).generated == [1]


@pytest.mark.parametrize(("now", "total"), [(2.25, 2.0), (9.0, 8.0)])
def test_an_answer_never_ends_before_its_first_token(now: float, total: float) -> None:
    """Redis's time is known as well as its replies are quick."""
    job = job_of()
    job.take([1, 2], ended_by_token=False)
    job.ttft = 1.0
    ending = asyncio.run(Signature("letters", "w").completed(job, FinishReason.LENGTH, now))
    assert ending.result.timings == Timings(queued=1.0, ttft=1.0, total=total)
