"""What a test can say to a fake: answers, times, jobs worked by hand, outages."""

from __future__ import annotations

import datetime
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from millrace import (
    Choice,
    ErrorCode,
    ErrorInfo,
    Finished,
    FinishReason,
    InvalidRequest,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobNotFound,
    JobState,
    Result,
    ResultTimeout,
    Started,
    Tokens,
    Usage,
)
from millrace.testing import FakeMillrace, prompt_text

Fakes = Callable[..., FakeMillrace]
LENGTH = Result(
    id="", model="", state=JobState.COMPLETED, choices=(Choice(0, "so lo", (5, 6), FinishReason.LENGTH),),
    usage=Usage(3, 2, 1),
)  # fmt: skip


def test_the_prompt_comes_back(fakes: Fakes) -> None:
    fake = fakes()
    client = fake.client()
    job = client.submit("  hello  there ", system="s")
    result = job.result()
    assert result.text == "  hello  there "
    assert len(result.choices[0].token_ids) == result.usage.completion_tokens == 3
    assert result.usage.prompt_tokens == 4
    assert client.submit(prompt_token_ids=[1, 2]).result().text == "1 2"
    assert [prompt_text(r) for r in fake.submitted] == ["  hello  there ", "1 2"]
    first = fake.jobs[0]
    assert (first.id, first.state, first.result) == (job.id, JobState.COMPLETED, result)


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        ("yes", "yes"),
        (["y", "es"], "yes"),
        ("", ""),
        ({"a": "A", "b": "B"}, "A"),
        (defaultdict(lambda: "else"), "else"),
        (lambda request: request.prompt * 2, "aa"),
        (lambda request: list("abc"), "abc"),
        (LENGTH, "so lo"),
    ],
)
def test_answers(fakes: Fakes, answers: Any, text: str) -> None:
    job = fakes(answers).client().submit("a", stream=True)
    assert job.result().text == text
    events = list(job.events())
    assert "".join(e.text for e in events if isinstance(e, Tokens)) == text
    ids = [i for e in events if isinstance(e, Tokens) for i in e.token_ids]
    assert tuple(ids) == job.result().choices[0].token_ids


@pytest.mark.parametrize(
    ("answers", "state", "code", "words"),
    [
        (ErrorCode.ENGINE_FAILED, JobState.FAILED, "engine_failed", "answer is engine_failed"),
        (ErrorInfo(ErrorCode.CANCELLED, "gone"), JobState.CANCELLED, "cancelled", "gone"),
        (ErrorCode.DEADLINE_EXCEEDED, JobState.EXPIRED, "deadline_exceeded", "answer is"),
        (JobFailed("x", ErrorInfo(ErrorCode.INTERNAL, "as given")), JobState.FAILED, "internal", "as given"),
        (InvalidRequest("bad", param="prompt"), JobState.FAILED, "invalid_request", "bad"),
        (RuntimeError("boom"), JobState.FAILED, "internal", "RuntimeError: boom"),
        ({"b": "B"}, JobState.FAILED, "internal", "the test's answers have none for 'a'"),
        (lambda request: 1 / 0, JobState.FAILED, "internal", "ZeroDivisionError"),
        (lambda request: 5, JobState.FAILED, "internal", "an answer is a str, .* not int"),
        (Result(id="", model="", state=JobState.QUEUED), JobState.FAILED, "internal", "terminal, not queued"),
        (Result(id="", model="", state=JobState.FAILED), JobState.FAILED, "internal", "if and only if"),
    ],
)
def test_answers_that_are_none(fakes: Fakes, answers: Any, state: JobState, code: str, words: str) -> None:
    job = fakes(answers).client().submit("a")
    with pytest.raises((JobFailed, JobCancelled, JobExpired), match=words) as caught:
        job.result()
    assert caught.value.error.code == code
    assert job.state() == state


def test_a_whole_result_becomes_the_jobs(fakes: Fakes) -> None:
    job = fakes(lambda request: LENGTH).client().submit("a", metadata={"k": "v"})
    result = job.result()
    assert (result.choices, result.usage) == (LENGTH.choices, LENGTH.usage)
    assert (result.id, result.model, result.attempts, result.metadata) == (job.id, "demo", 1, {"k": "v"})


def test_a_result_for_s3_names_its_place(fakes: Fakes) -> None:
    job = fakes().client().submit("a b", result_to="s3://bucket/p/")
    assert (job.result().location, job.result().text) == (f"s3://bucket/p/{job.id}.1.json", "a b")


def test_a_delay_is_waited_for_or_skipped(fakes: Fakes) -> None:
    fake = fakes(delay=0.1)
    client = fake.client()
    began = time.monotonic()
    assert client.submit("a").result(timeout=10).text == "a"
    assert time.monotonic() - began >= 0.1
    fake.delay = 3600
    job = client.submit("b", stream=True)
    stream = job.events()
    assert next(stream) == Started(attempt=1)
    assert (job.state(), client.queue_stats().lanes["interactive"].in_flight) == (JobState.IN_PROGRESS, 1)
    with pytest.raises(ResultTimeout):
        job.result(timeout=0)
    fake.advance(3600)
    assert [type(e) for e in stream] == [Tokens, Finished]
    assert 3600 <= job.result().timings.total < 3610


def test_moving_the_clock_wakes_who_waits(fakes: Fakes) -> None:
    fake = fakes(delay=3600)
    job = fake.client().submit("a")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(job.result, 20)
        time.sleep(0.05)
        fake.advance(4000)
        assert waiting.result(timeout=10).text == "a"


def test_deadlines(fakes: Fakes) -> None:
    fake = fakes(manual=True)
    client = fake.client()
    queued, running, done = (client.submit("a", stream=True, deadline=datetime.timedelta(hours=1)) for _ in range(3))
    fake.stream(running, ["so", " far"])
    fake.finish(done)
    fake.advance(3599)
    assert queued.state() == JobState.QUEUED
    fake.advance(1)
    with pytest.raises(JobExpired, match="before a worker could run the job"):
        queued.result()
    with pytest.raises(JobExpired, match="while the job ran"):
        running.result()
    assert running.wait().text == "so far"
    assert done.state() == JobState.COMPLETED
    assert list(queued.events()) == [Finished(queued.wait())]
    assert client.submit("late", deadline=1.0).state() == JobState.EXPIRED
    fake.manual = False
    assert client.submit("late", deadline=1.0).wait().error.code == ErrorCode.DEADLINE_EXCEEDED


def test_a_deadline_ends_a_wait(fakes: Fakes) -> None:
    job = fakes(manual=True).client().submit("a", deadline=datetime.timedelta(milliseconds=100))
    with pytest.raises(JobExpired):
        job.result(timeout=20)


def test_times_to_live(fakes: Fakes) -> None:
    fake = fakes()
    client = fake.client()
    job = client.submit("a", idempotency_key="k")
    fake.manual = True
    kept = client.submit("b")
    fake.advance(86_399)
    assert client.submit("a", idempotency_key="k").id == job.id
    fake.advance(1)
    with pytest.raises(JobNotFound, match="time to live is over"):
        job.result()
    assert client.submit("a", idempotency_key="k").id != job.id
    assert kept.state() == JobState.QUEUED
    fake.advance(6 * 86_400)
    with pytest.raises(JobNotFound):
        kept.state()
    assert len(fake.jobs) == 3
