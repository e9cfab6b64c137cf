"""Jobs that a test works on itself, outages, and who may share a fake."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from millrace import (
    ErrorCode,
    Finished,
    InvalidRequest,
    JobFailed,
    JobNotFound,
    JobState,
    ModelInfo,
    QueueUnavailable,
    Request,
    Tokens,
)
from millrace.testing import FakeMillrace
from millrace_schemas import IllegalTransition

Fakes = Callable[..., FakeMillrace]


def test_a_job_worked_by_hand(fakes: Fakes) -> None:
    fake = fakes(manual=True)
    client = fake.client()
    job = client.submit("q", stream=True)
    assert job.state() == JobState.QUEUED
    fake.start(job)
    assert job.state() == JobState.IN_PROGRESS
    stream = job.events()
    fake.stream(job.id, ["a", "b"])
    assert [next(stream) for _ in range(3)][1:] == [
        Tokens(0, (job_ids(fake)[0],), "a"),
        Tokens(1, (job_ids(fake)[1],), "b"),
    ]
    fake.finish(fake.jobs[0])
    assert list(stream) == [Finished(job.result())]
    assert job.result().text == "ab"


def job_ids(fake: FakeMillrace) -> list[int]:
    return fake.jobs[-1].token_ids


def test_a_streamed_answer_goes_on_as_it_began(fakes: Fakes) -> None:
    fake = fakes(manual=True)
    job = fake.client().submit("q", stream=True)
    fake.stream(job, ["one", " two"])
    with pytest.raises(ValueError, match="has already said 'one two'"):
        fake.finish(job, "else")
    assert job.state() == JobState.IN_PROGRESS
    fake.finish(job, "one two three four")
    assert [e.text for e in job.events() if isinstance(e, Tokens)] == ["one", " two", " three", " four"]
    with pytest.raises(TypeError, match="not one str"):
        fake.stream(job, "ab")


def test_without_an_answer_the_usual_one_is_given(fakes: Fakes) -> None:
    fake = fakes({"q": "known"}, manual=True)
    job = fake.client().submit("q")
    fake.finish(job)
    assert job.result().text == "known"


def test_a_failure_by_hand(fakes: Fakes) -> None:
    fake = fakes(manual=True)
    client = fake.client()
    job = client.submit("q")
    fake.stream(job, ["half"])
    fake.fail(job, "engine_failed", "out of memory")
    with pytest.raises(JobFailed, match="out of memory") as caught:
        job.result()
    assert caught.value.error.code == ErrorCode.ENGINE_FAILED
    assert job.wait().text == "half"
    assert client.dead() == []
    with pytest.raises(ValueError, match="nonsense"):
        fake.fail(client.submit("r"), "nonsense")


def test_an_ended_job_cannot_be_worked_on(fakes: Fakes) -> None:
    fake = fakes(manual=True)
    client = fake.client()
    job = client.submit("q")
    fake.fail(job, ErrorCode.TOO_MANY_ATTEMPTS)
    for act in (fake.start, fake.finish, fake.fail, lambda job: fake.stream(job, ["a"])):
        with pytest.raises(IllegalTransition, match=r"has ended \(failed\)"):
            act(job)
    assert len(client.dead()) == 1
    with pytest.raises(JobNotFound):
        fake.finish("demo-" + "0" * 26)


def test_a_cancelled_running_job_keeps_what_it_said(fakes: Fakes) -> None:
    fake = fakes(manual=True)
    job = fake.client().submit("q", stream=True)
    fake.stream(job, ["half"])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(job.wait, 20)
        assert job.cancel() == JobState.IN_PROGRESS
        result = waiting.result(timeout=10)
    assert (result.state, result.text, result.error.message) == (JobState.CANCELLED, "half", "cancelled while it ran")


def test_a_cancelled_job_is_not_answered_later(fakes: Fakes) -> None:
    fake = fakes(delay=10)
    job = fake.client().submit("q")
    job.cancel()
    fake.advance(20)
    assert job.state() == JobState.CANCELLED


def test_a_job_finished_by_hand_before_its_delay(fakes: Fakes) -> None:
    fake = fakes(delay=10)
    job = fake.client().submit("q")
    fake.stream(job, ["my", " own"])
    fake.advance(20)
    assert job.state() == JobState.IN_PROGRESS
    fake.finish(job)
    assert job.result().text == "my own"


def test_a_job_cancelled_while_its_answer_is_made(fakes: Fakes) -> None:
    fake = fakes()
    other = fake.client()

    def answer(request: Request) -> str:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(other.cancel, fake.jobs[-1].id).result(timeout=10)
        return "too late"

    fake.answers = answer
    job = fake.client().submit("q")
    assert job.state() == JobState.CANCELLED


def test_an_outage(fakes: Fakes) -> None:
    fake = fakes(manual=True)
    client = fake.client()
    job = client.submit("a", stream=True)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(job.result, 20)
        time.sleep(0.05)
        with fake.outage():
            for ask in (
                lambda: client.submit("b"), lambda: client.submit_many([{"prompt": "b"}]), job.state, job.record,
                job.cancel, job.wait, lambda: next(job.events()), client.models, client.queue_stats, client.dead,
                client.purge_dead, lambda: client.requeue_dead("1-1"),
            ):  # fmt: skip
                with pytest.raises(QueueUnavailable, match="no Redis at memory"):
                    ask()
            assert isinstance(waiting.exception(timeout=10), QueueUnavailable)
    fake.finish(job, "still there")
    assert job.result().text == "still there"
    assert len(fake.jobs) == 1


def test_clients_of_all_kinds_share_a_fake(fakes: Fakes) -> None:
    fake = fakes(manual=True)

    async def run() -> None:
        client = fake.async_client()
        job = await client.submit("a")
        waiting = asyncio.create_task(job.result(timeout=20))
        await asyncio.sleep(0)
        thread = threading.Thread(target=fake.finish, args=(job, "from a thread"))
        thread.start()
        assert (await waiting).text == "from a thread"
        thread.join()
        assert await asyncio.to_thread(lambda: fake.client().result(job.id).text) == "from a thread"

    asyncio.run(run())
    # And from another loop.
    assert asyncio.run(fake.async_client().result(fake.jobs[0].id)).text == "from a thread"


def test_models_of_a_fake(fakes: Fakes) -> None:
    small = ModelInfo(name="small", max_model_len=8, vocab_size=10)
    fake = fakes(models=["org/big", small])
    with pytest.raises(InvalidRequest, match="several models"):
        fake.client().submit("a")
    with pytest.raises(InvalidRequest, match="8 tokens"):
        fake.client("small").submit("a", sampling={"max_tokens": 9})
    job = fake.client("small").submit("some words to speak of")
    assert all(0 <= i < 10 for i in job.result().choices[0].token_ids)
    with pytest.raises(InvalidRequest, match="model names have"):
        fakes(models="white space")


def test_time_does_not_go_back(fakes: Fakes) -> None:
    with pytest.raises(ValueError, match="forward only"):
        fakes().advance(-1)


def test_closing_ends_the_clients_threads() -> None:
    with FakeMillrace() as fake:
        fake.client().submit("a")
        assert any(t.name == "millrace-client" for t in threading.enumerate())
    assert all(t.name != "millrace-client" for t in threading.enumerate())
