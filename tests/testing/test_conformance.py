"""The same cases against a client of Redis and against one of millrace.testing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from millrace import (
    Client,
    ErrorCode,
    Finished,
    InvalidRequest,
    JobFailed,
    JobNotFound,
    JobState,
    PartlySubmitted,
    Request,
    Started,
    Tokens,
    UnknownModel,
)
from millrace_schemas import new_job_id
from sites import Site


def caught_by(ask: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception, match=r".") as caught:
        ask()
    return caught.value


def test_a_job_comes_back_with_its_answer(site: Site, client: Client) -> None:
    site.work()
    job = client.submit("hello", metadata={"user": "7"})
    result = job.result(timeout=10)
    assert (result.text, result.id, result.model) == ("HELLO", job.id, "demo")
    assert (result.metadata, result.attempts, result.worker) == ({"user": "7"}, 1, "fake")
    assert result.usage.prompt_tokens > 0
    assert result.timings.total >= result.timings.queued >= 0
    assert client.state(job.id) == JobState.COMPLETED
    record = job.record()
    assert (record.id, record.attempts, record.worker, record.cancel_requested) == (job.id, 1, "fake", False)
    assert record.created_at <= record.started_at <= record.finished_at
    assert abs(record.created_at - time.time()) < 10
    assert client.get(job.id).result().text == client.result(job.id).text == "HELLO"


def test_what_was_submitted_can_be_read(site: Site, client: Client) -> None:
    job = client.submit("hello", system="be brief", metadata={"user": "7"}, stream=True)
    request = job.request()
    assert [message.content for message in request.messages or ()] == ["be brief", "hello"]
    assert (request.model, request.metadata, request.stream) == ("demo", {"user": "7"}, True)
    assert request.sampling.seed is not None
    site.work()
    job.result(timeout=10)
    assert client.request(job.id) == request


def test_a_failed_job_raises_and_can_be_looked_at(site: Site, client: Client) -> None:
    site.work()
    job = client.submit("fail please", stream=True)
    with pytest.raises(JobFailed, match="told to fail") as caught:
        job.result(timeout=10)
    assert (caught.value.job_id, caught.value.error.code) == (job.id, ErrorCode.INTERNAL)
    assert job.wait().state == job.state() == JobState.FAILED
    assert list(job.events())[-1] == Finished(job.wait())


def test_a_chat_reaches_the_worker(site: Site, client: Client) -> None:
    site.work()
    assert client.submit("hi", system="be brief").result(timeout=10).text == "HI"
    assert client.submit(messages=[{"role": "user", "content": "you"}]).result(timeout=10).text == "YOU"
    assert client.submit(prompt_token_ids=[1, 2]).result(timeout=10).text == "1 2"


def test_what_is_queued(site: Site, client: Client) -> None:
    client.submit("b", lane="batch", deadline=2e9, sampling={"stop": "END", "seed": 5}, metadata={"k": "v"})
    client.submit("a", system="s", stream=True, idempotency_key="one")
    first, second = site.waiting()
    assert (first.model, first.prompt, first.stream) == ("demo", None, True)
    assert [(m.role, m.content) for m in first.messages] == [("system", "s"), ("user", "a")]
    assert first.sampling.seed is not None
    assert (second.lane, second.deadline, second.metadata) == ("batch", 2e9, {"k": "v"})
    assert (second.sampling.stop, second.sampling.seed) == (("END",), 5)


def test_events_in_order_and_from_any_point_on(site: Site, client: Client) -> None:
    site.work()
    job = client.submit("hello there", stream=True)
    everything = list(job.events())
    assert [type(e) for e in everything] == [Started, Tokens, Tokens, Finished]
    assert everything[0] == Started(attempt=1)
    tokens = [e for e in everything if isinstance(e, Tokens)]
    assert [t.start for t in tokens] == [0, 1]
    assert "".join(t.text for t in tokens) == "HELLO THERE"
    assert everything[-1].result == job.result()
    for seen in range(1, 5):
        stream = client.events(job.id)
        for _ in range(seen):
            next(stream)
        # Behind the last event there is the end, again.
        assert list(job.events(after=stream.last_id)) == (everything[seen:] or everything[-1:])
    assert list(stream) == []


def test_events_that_cannot_be_read(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="submit it with stream=True") as caught:
        next(client.submit("a").events())
    assert caught.value.param == "stream"
    with pytest.raises(InvalidRequest, match="as last_id gives it") as caught:
        client.submit("a", stream=True).events(after="x-1")
    assert caught.value.param == "after"
    with pytest.raises(JobNotFound, match="there is no job"):
        next(client.events(new_job_id("demo")))


def test_events_are_awaited(site: Site, client: Client) -> None:
    site.work(hold=True)
    job = client.submit("hello there", stream=True)
    site.take(job.id)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(list, job.events())
        site.release()
        assert [type(e) for e in reading.result(timeout=10)] == [Started, Tokens, Tokens, Finished]


def test_one_idempotency_key_makes_one_job(site: Site, client: Client) -> None:
    start = threading.Barrier(8)

    def submit(i: int) -> str:
        start.wait()
        return client.submit(f"hi {i}", idempotency_key="order-17").id

    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(submit, range(8)))
    assert len(ids) == len(site.waiting()) == 1
    assert client.submit_many([{"prompt": "x", "idempotency_key": "order-17"}])[0].id in ids
    assert client.submit("hi", idempotency_key="order-18").id not in ids
    site.register("other")
    # Keys belong to a queue.
    assert client.submit("hi", model="other", idempotency_key="order-17").id.startswith("other-")


def test_a_key_names_its_job_after_its_end(site: Site, client: Client) -> None:
    site.work()
    job = client.submit("hi", idempotency_key="k")
    job.result(timeout=10)
    again = client.submit("other", idempotency_key="k")
    assert (again.id, again.result().text) == (job.id, "HI")


def test_many_jobs(site: Site, client: Client) -> None:
    jobs = client.submit_many(
        Request(model="demo", prompt=f"p{i}") if i % 2 else {"prompt": f"p{i}"} for i in range(300)
    )
    assert [request.prompt for request in site.waiting()] == [f"p{i}" for i in range(300)]
    assert len({job.id for job in jobs}) == 300
    assert client.submit_many([]) == []
    site.work()
    assert [job.result(timeout=10).text for job in jobs[::50]] == [f"P{i}" for i in range(0, 300, 50)]


def test_many_jobs_are_checked_before_any_is_queued(site: Site, client: Client) -> None:
    good = {"prompt": "a"}
    error = caught_by(lambda: client.submit_many([good, {"prompt": "a", "sampling": {"top_p": 2.0}}]))
    assert isinstance(error, InvalidRequest)
    assert str(error).startswith("requests[1]: sampling.top_p")
    error = caught_by(lambda: client.submit_many([good, {"prompt": "a", "model": "nope"}]))
    assert isinstance(error, UnknownModel)
    assert str(error) == "requests[1]: no worker has registered model 'nope'; registered: demo"
    assert site.waiting() == []


@pytest.mark.parametrize(
    ("arguments", "param", "code", "words"),
    [
        ({}, "prompt", "invalid_request", "exactly one of"),
        ({"prompt": 5}, "prompt", "invalid_request", "expected str"),
        ({"prompt": "lone \ud800 surrogate"}, "prompt", "invalid_request", "at character 5"),
        ({"prompt": "x" * (4 * 2**20 + 1)}, "prompt", "job_too_large", "4,194,304"),
        ({"prompt": "a", "lane": "fast"}, "lane", "invalid_request", "must be"),
        ({"prompt": "a", "idempotency_key": ""}, "idempotency_key", "invalid_request", "1 to 256"),
        ({"prompt": "a", "sampling": {"max_tokens": 513}}, "sampling.max_tokens", "context_length_exceeded", "512"),
        ({"prompt_token_ids": [256]}, "prompt_token_ids", "invalid_request", "256 tokens"),
        ({"prompt": "a", "model": "white space"}, "model", "unknown_model", "model names have"),
    ],
    ids=lambda v: repr(v)[:30],
)
def test_bad_input(site: Site, client: Client, arguments: dict[str, Any], param: str, code: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.submit(**arguments)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert words in str(caught.value)
    assert site.waiting() == []


def test_a_model_without_chat_template_takes_no_chat(site: Site) -> None:
    site.register("base", has_chat_template=False)
    with site.client("base") as client, pytest.raises(InvalidRequest, match="no chat template") as caught:
        client.submit("a", system="s")
    assert caught.value.code == ErrorCode.NO_CHAT_TEMPLATE


def test_models(site: Site) -> None:
    site.unregister("demo")
    with site.client() as client:
        assert client.models() == []
        with pytest.raises(UnknownModel, match="no model is registered; start a worker"):
            client.submit("a")
        site.register("org/one")
        assert client.submit("a").id.startswith("org--one-")
    site.register("two")
    with site.client() as client:
        with pytest.raises(InvalidRequest, match="several models are registered; name one: org/one, two"):
            client.submit("a")
        assert [(m.name, m.max_model_len) for m in client.models()] == [("org/one", 512), ("two", 512)]
    with site.client("two") as client:
        assert client.submit("a").id.startswith("two-")


def test_a_model_that_goes_away_after_the_client_looked(site: Site, client: Client) -> None:
    client.submit("a")
    site.unregister("demo")
    with pytest.raises(UnknownModel, match="'demo'; no model is registered"):
        client.submit("a", model="demo")
    assert len(site.waiting()) == 1


def test_many_jobs_say_which_are_queued_when_the_model_goes_away(site: Site, client: Client) -> None:
    client.submit("a", model="demo")
    site.unregister("demo")
    error = caught_by(lambda: client.submit_many([{"prompt": "a", "model": "demo"}] * 3))
    assert isinstance(error, PartlySubmitted)
    assert (len(error.submitted), len(error.unsure)) == (0, 3)
    assert str(error).startswith("0 of 3 jobs are queued; the others, from requests[0] on, may not be: no worker")
