"""The three examples are one API: the same requests get the same answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
import redis

from backends import until
from fake_worker import FakeWorker
from millrace import Choice, ErrorCode, ErrorInfo, Finished, FinishReason, JobState, Result, Started, Tokens
from millrace_schemas import MODELS, QueueKeys, Request, decode, encode

Ask = Callable[..., str]
KEYS = QueueKeys("demo")
GONE = "demo-01m808vwx0w3zfy5jfrd18ya95"


def sse(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """Events by their fields."""
    event: dict[str, str] = {}
    for line in lines:
        if not line and event:
            yield event
            event = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            event[name] = value


def text_of(events: list[dict[str, str]]) -> str:
    return "".join(json.loads(event["data"])["text"] for event in events if event["event"] == "tokens")


def read(http: httpx2.Client, job: str, after: str | None = None) -> list[dict[str, str]]:
    headers = {} if after is None else {"Last-Event-ID": after}
    with http.stream("GET", f"/answers/{job}/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        return list(sse(answer.iter_lines()))


def at_work(raw: redis.Redis, job: str) -> None:
    until(lambda: raw.hget(KEYS.job(job), "state") == b"in_progress")


def end(raw: redis.Redis, job: str, state: JobState, error: ErrorInfo) -> None:
    """Ends a job as its worker would."""
    raw.set(KEYS.result(job), encode(Result(id=job, model="demo", state=state, error=error)), ex=60)
    raw.hset(KEYS.job(job), "state", str(state))
    raw.publish(KEYS.done(job), str(state))


def test_ask_and_poll(http: httpx2.Client, ask: Ask, raw: redis.Redis, worker: FakeWorker) -> None:
    job = ask("Is it in stock?")
    answer = http.get(f"/answers/{job}", params={"wait": 10})
    assert (answer.status_code, answer.json()) == (200, {"state": "completed", "text": "IS IT IN STOCK?"})
    request = decode(raw.hget(KEYS.job(job), "request"), Request)
    assert request.messages is not None
    assert [str(message.role) for message in request.messages] == ["system", "user"]
    assert request.stream
    assert 200 < request.deadline - time.time() <= 300


def test_a_repeated_request_makes_one_job(http: httpx2.Client, ask: Ask, raw: redis.Redis) -> None:
    assert ask("a", "one") == ask("a", "one") == ask("b", "one") != ask("a", "two")
    assert len(list(raw.scan_iter(KEYS.job("*")))) == 2


def test_a_poll_does_not_wait_for_ever(
    http: httpx2.Client, ask: Ask, raw: redis.Redis, idle_worker: FakeWorker
) -> None:
    job = ask()
    at_work(raw, job)
    for params in ({}, {"wait": "0.1"}):
        answer = http.get(f"/answers/{job}", params=params)
        assert (answer.status_code, answer.json()) == (202, {"state": "in_progress"})
    idle_worker.release()
    assert http.get(f"/answers/{job}", params={"wait": 10}).json()["text"] == "HELLO"


def test_a_stream(http: httpx2.Client, ask: Ask, worker: FakeWorker) -> None:
    job = ask("line\none")
    events = read(http, job)
    assert text_of(events) == "LINE\nONE"
    assert (events[-1]["event"], json.loads(events[-1]["data"])) == ("end", {"state": "completed"})
    # As a browser that lost its connection after the first tokens.
    rest = read(http, job, after=events[0]["id"])
    assert rest == events[1:]
    assert read(http, job, after=events[-1]["id"]) == events[-1:]


def test_a_stream_while_the_job_runs_and_moves(
    http: httpx2.Client, ask: Ask, raw: redis.Redis, idle_worker: FakeWorker
) -> None:
    job = ask()
    at_work(raw, job)
    idle_worker.publish(job, Started(1))
    with http.stream("GET", f"/answers/{job}/events") as answer:
        events = sse(answer.iter_lines())
        idle_worker.publish(job, Tokens(0, (1,), "one"))
        seen = [next(events)]
        assert text_of(seen) == "one"
        # The worker has died; another one goes on from the tokens that were stored.
        idle_worker.publish(job, Started(2, tokens=1))
        idle_worker.publish(job, Tokens(1, (2,), " two"))
        seen.append(next(events))
        choice = Choice(0, "one two", (1, 2), FinishReason.STOP)
        idle_worker.publish(job, Finished(Result(id=job, model="demo", state=JobState.COMPLETED, choices=(choice,))))
        seen += events
    assert text_of(seen) == "one two"
    assert [event["event"] for event in seen] == ["tokens", "tokens", "end"]


def test_cancel_in_the_queue(http: httpx2.Client, ask: Ask) -> None:
    job = ask()
    assert http.get(f"/answers/{job}").json() == {"state": "queued"}
    for _ in range(2):
        answer = http.delete(f"/answers/{job}")
        assert (answer.status_code, answer.json()) == (200, {"state": "cancelled"})
    assert (http.get(f"/answers/{job}").status_code, http.get(f"/answers/{job}").json()) == (
        410,
        {"error": "cancelled"},
    )
    assert json.loads(read(http, job)[-1]["data"]) == {"state": "cancelled"}


def test_cancel_at_work(http: httpx2.Client, ask: Ask, raw: redis.Redis, idle_worker: FakeWorker) -> None:
    job = ask()
    at_work(raw, job)
    assert http.delete(f"/answers/{job}").json() == {"state": "in_progress"}
    idle_worker.release()
    assert http.get(f"/answers/{job}", params={"wait": 10}).status_code == 410


@pytest.mark.parametrize(
    ("state", "code", "status"),
    [
        (JobState.FAILED, ErrorCode.INTERNAL, 502),
        (JobState.FAILED, ErrorCode.TOO_MANY_ATTEMPTS, 502),
        (JobState.FAILED, ErrorCode.CONTEXT_LENGTH_EXCEEDED, 422),
        (JobState.EXPIRED, ErrorCode.DEADLINE_EXCEEDED, 504),
    ],
)
def test_jobs_without_an_answer(
    http: httpx2.Client, ask: Ask, raw: redis.Redis, state: JobState, code: ErrorCode, status: int
) -> None:
    job = ask()
    end(raw, job, state, ErrorInfo(code, "a secret of the worker"))
    answer = http.get(f"/answers/{job}")
    assert (answer.status_code, answer.json()) == (status, {"error": code})
    assert json.loads(read(http, job)[-1]["data"]) == {"state": state}


def test_requests_that_mean_nothing(http: httpx2.Client, raw: redis.Redis) -> None:
    key = {"Idempotency-Key": "k"}
    bad: list[tuple[Any, dict[str, str]]] = [
        ({"question": "a"}, {}), ({"question": "a"}, {"Idempotency-Key": "k" * 300}), ({"question": ""}, key),
        ({"question": 5}, key), ({}, key), ([], key),
    ]  # fmt: skip
    for body, headers in bad:
        answer = http.post("/answers", json=body, headers=headers)
        assert answer.status_code in (400, 422), (body, answer.text)
    broken = http.post("/answers", content=b"{", headers={**key, "content-type": "application/json"})
    assert broken.status_code in (400, 422)
    assert not list(raw.scan_iter(KEYS.job("*")))


def test_no_such_job(http: httpx2.Client) -> None:
    for path in (f"/answers/{GONE}", f"/answers/{GONE}?wait=5", f"/answers/{GONE}/events"):
        assert http.get(path).status_code == 404, path
    assert http.delete(f"/answers/{GONE}").status_code == 404
    for path in ("/answers/nonsense", "/answers/nonsense/events"):
        assert http.get(path).status_code == 400, path


def test_odd_waits_and_places(http: httpx2.Client, ask: Ask) -> None:
    job = ask()
    for wait in ("nan", "-1"):
        assert http.get(f"/answers/{job}", params={"wait": wait}).status_code in (202, 422)
    assert http.get(f"/answers/{job}/events", headers={"Last-Event-ID": "first"}).status_code == 400


def test_no_worker_has_been_there(http: httpx2.Client, raw: redis.Redis) -> None:
    raw.delete(KEYS.model, MODELS)
    answer = http.post("/answers", json={"question": "a"}, headers={"Idempotency-Key": "k"})
    assert (answer.status_code, answer.json()) == (503, {"error": "unavailable"})
    assert answer.headers["retry-after"] == "5"
