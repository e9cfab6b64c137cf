from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
import redis

from fake_worker import FakeWorker
from gateway_server import GatewayServer
from millrace.gateway import GatewaySettings
from millrace_schemas import Lane, QueueKeys, Request, Started, Tokens

Stored = Callable[[str], Request]


def submit(http: httpx2.Client, **job: Any) -> str:
    answer = http.post("/v1/jobs", json={"prompt": "hello", **job})
    assert answer.status_code == 202, answer.text
    found: str = answer.json()["id"]
    return found


def sse(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """Events by their fields; comments are events without any."""
    event: dict[str, str] = {}
    for line in lines:
        if not line:
            yield event
            event = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            event[name] = value


def test_a_job(http: httpx2.Client, worker: FakeWorker) -> None:
    answer = http.post("/v1/jobs", json={"prompt": "hello", "metadata": {"a": "b"}})
    assert answer.status_code == 202
    job = answer.json()["id"]
    assert answer.json() == {"id": job, "object": "job"}
    assert answer.headers["location"] == f"/v1/jobs/{job}"
    found = http.get(f"/v1/jobs/{job}", params={"wait": 20}).json()
    assert (found["id"], found["object"], found["state"], found["attempts"]) == (job, "job", "completed", 1)
    assert found["worker"] == "fake"
    assert found["created_at"] <= found["started_at"] <= found["finished_at"]
    assert found["result"]["choices"][0]["text"] == "HELLO"
    assert found["result"]["usage"]["cached_tokens"] == 8
    assert found["result"]["metadata"] == {"a": "b"}
    assert http.get(f"/v1/jobs/{job}").json() == found


def test_arguments_reach_the_job(http: httpx2.Client, stored: Stored) -> None:
    job = submit(
        http, system="be kind", model="demo", lane="batch", stream=True, result_to="s3://bucket/x", deadline=9e9,
        sampling={"max_tokens": 5, "stop": "x", "seed": 3},
    )  # fmt: skip
    request = stored(job)
    assert [(str(m.role), m.content) for m in request.messages or ()] == [("system", "be kind"), ("user", "hello")]
    assert (request.lane, request.stream, request.result_to) == (Lane.BATCH, True, "s3://bucket/x")
    assert request.deadline == 9e9
    assert (request.sampling.max_tokens, request.sampling.stop, request.sampling.seed) == (5, ("x",), 3)


def test_a_failed_job_is_a_result(http: httpx2.Client, worker: FakeWorker) -> None:
    found = http.get(f"/v1/jobs/{submit(http, prompt='fail')}", params={"wait": 20})
    assert found.status_code == 200
    assert found.json()["state"] == "failed"
    assert found.json()["result"]["error"]["code"] == "internal"


def test_a_list_of_jobs(http: httpx2.Client, worker: FakeWorker) -> None:
    answer = http.post("/v1/jobs", json=[{"prompt": text} for text in "abc"])
    assert answer.status_code == 202
    assert answer.json()["object"] == "list"
    ids = [job["id"] for job in answer.json()["data"]]
    found = [http.get(f"/v1/jobs/{job}", params={"wait": 20}).json() for job in ids]
    assert [job["result"]["choices"][0]["text"] for job in found] == ["A", "B", "C"]


def test_a_list_is_all_or_nothing(http: httpx2.Client, raw: redis.Redis, keys: QueueKeys) -> None:
    bad: list[list[Any]] = [
        [{"prompt": "a"}, {"prompt": ""}],
        [{"prompt": "a"}, {"prompt": "b", "colour": 1}],
        [{"prompt": "a"}, 5],
        [{"prompt": "a"}, {"prompt": "b", "model": "nope"}],
        [{"prompt": "a"}] * 6,
    ]
    for jobs in bad:
        answer = http.post("/v1/jobs", json=jobs)
        assert answer.status_code in (400, 404), answer.text
    assert "requests[1]" in http.post("/v1/jobs", json=bad[1]).json()["error"]["message"]
    assert not list(raw.scan_iter(keys.job("*")))
    assert http.post("/v1/jobs", json=[{"prompt": "a"}] * 5).status_code == 202


def test_keys(http: httpx2.Client, raw: redis.Redis, keys: QueueKeys) -> None:
    header = {"Idempotency-Key": "k" * 256}
    one = [http.post("/v1/jobs", json={"prompt": "a"}, headers=header).json()["id"] for _ in range(2)]
    many = [http.post("/v1/jobs", json=[{"prompt": "a"}] * 3, headers=header).json()["data"] for _ in range(2)]
    assert one[0] == one[1]
    assert many[0] == many[1]
    assert len({job["id"] for job in many[0]}) == 3
    assert len(list(raw.scan_iter(keys.job("*")))) == 4
    # One of a job's own goes before the header's.
    own = [
        http.post("/v1/jobs", json=[{"prompt": "a", "idempotency_key": key}], headers=header).json() for key in "xyx"
    ]
    assert own[0] == own[2]
    assert own[0] != own[1]


@pytest.mark.parametrize(
    ("job", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "a", "prompt_token_ids": [1]}, "prompt"),
        ({"prompt": "a", "colour": "red"}, "colour"),
        ({"prompt": "a", "sampling": {"top_p": 2}}, "sampling.top_p"),
        ({"prompt": "a", "sampling": []}, "sampling"),
        ({"prompt": "a", "sampling": {"max_tokens": 10_000}}, "sampling.max_tokens"),
        ({"prompt": "a", "lane": "fast"}, "lane"),
        ({"prompt": "a", "deadline": "soon"}, "deadline"),
        ({"prompt": "a", "metadata": []}, "metadata"),
        ({"prompt": "a", "stream": "x"}, "stream"),
        ({"prompt": "a", "result_to": "ftp://x"}, "result_to"),
        ({"prompt": "a", "idempotency_key": ""}, "idempotency_key"),
        ({"prompt": "a", "idempotency_key": 5}, "idempotency_key"),
        ({"prompt": "a", "model": 5}, "model"),
        ({"prompt": "a", "model": ["demo"]}, "model"),
        ({"messages": {"role": "user"}}, "messages"),
        ({"prompt_token_ids": [-1]}, "prompt_token_ids"),
        ({"prompt_token_ids": 5}, "prompt_token_ids"),
        ({"prompt_token_ids": [300]}, "prompt_token_ids"),
    ],
)
def test_bad_jobs(http: httpx2.Client, job: dict[str, Any], param: str) -> None:
    for body in (job, [job]):
        answer = http.post("/v1/jobs", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_other_errors(http: httpx2.Client) -> None:
    unknown = http.post("/v1/jobs", json={"prompt": "a", "model": "nope"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    gone = "demo-01m808vwx0w3zfy5jfrd18ya95"
    for method, path in (("GET", gone), ("DELETE", gone), ("GET", f"{gone}/events")):
        answer = http.request(method, f"/v1/jobs/{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found"), path
        answer = http.request(method, f"/v1/jobs/{path}".replace(gone, "something"))
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "id"), path
    job = submit(http)
    for wait in ("61", "-1", "x", "nan", "inf", "1" * 50_000 + "x"):
        answer = http.get(f"/v1/jobs/{job}", params={"wait": wait})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "wait")


def test_a_long_poll(http: httpx2.Client, idle_worker: FakeWorker) -> None:
    job = submit(http)
    found = http.get(f"/v1/jobs/{job}", params={"wait": 0.3})
    assert (found.status_code, found.json()["result"]) == (200, None)
    assert found.json()["state"] in ("queued", "in_progress")
    while not idle_worker.taken:
        time.sleep(0.02)
    assert http.get(f"/v1/jobs/{job}").json()["state"] == "in_progress"
    idle_worker.release()
    found = http.get(f"/v1/jobs/{job}", params={"wait": 20})
    assert (found.json()["state"], found.json()["result"]["state"]) == ("completed", "completed")


def test_whoever_waits_for_a_job_may_leave(http: httpx2.Client, idle_worker: FakeWorker) -> None:
    job = submit(http, stream=True)
    for path in (f"/v1/jobs/{job}?wait=20", f"/v1/jobs/{job}/events"):
        with pytest.raises(httpx2.ReadTimeout):
            # Keep-alives come every 0.3 s.
            http.get(path, timeout=0.2)
    time.sleep(0.3)
    assert http.get(f"/v1/jobs/{job}").json()["cancel_requested"] is False
    idle_worker.release()
    assert http.get(f"/v1/jobs/{job}?wait=20").json()["state"] == "completed"


def test_cancelling(http: httpx2.Client) -> None:
    job = submit(http)
    answer = http.delete(f"/v1/jobs/{job}")
    assert answer.status_code == 200
    assert answer.json() == {"id": job, "object": "job", "state": "cancelled", "cancel_requested": False}
    assert http.delete(f"/v1/jobs/{job}").json() == answer.json()
    found = http.get(f"/v1/jobs/{job}").json()
    assert (found["state"], found["result"]["error"]["code"]) == ("cancelled", "cancelled")


def test_cancelling_what_runs(http: httpx2.Client, idle_worker: FakeWorker) -> None:
    job = submit(http)
    while not idle_worker.taken:
        time.sleep(0.02)
    answer = http.delete(f"/v1/jobs/{job}").json()
    assert (answer["state"], answer["cancel_requested"]) == ("in_progress", True)
    idle_worker.release()
    assert http.get(f"/v1/jobs/{job}?wait=20").json()["state"] == "cancelled"


def test_events(http: httpx2.Client, worker: FakeWorker) -> None:
    job = submit(http, stream=True)
    with http.stream("GET", f"/v1/jobs/{job}/events") as answer:
        events = [event for event in sse(answer.iter_lines()) if event]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [event["event"] for event in events] == ["started", "tokens", "tokens", "finished"]
    data = [json.loads(event["data"]) for event in events]
    assert data[1]["text"] + data[2]["text"] == "HELLO"
    assert data[1]["token_ids"] == [1]
    assert data[3]["result"]["choices"][0]["text"] == "HELLO"
    assert len({event["id"] for event in events}) == 4


def test_events_go_on_behind_the_last_one_seen(http: httpx2.Client, idle_worker: FakeWorker) -> None:
    job = submit(http, stream=True)
    while not idle_worker.taken:
        time.sleep(0.02)
    idle_worker.publish(job, Started(attempt=1))
    idle_worker.publish(job, Tokens(0, (1,), "one"))
    with http.stream("GET", f"/v1/jobs/{job}/events") as answer:
        # It is told as it happens: the job has not ended.
        events = (event for event in sse(answer.iter_lines()) if event)
        assert next(events)["event"] == "started"
        last = next(events)
    idle_worker.publish(job, Tokens(1, (2,), "two"))
    with http.stream("GET", f"/v1/jobs/{job}/events", headers={"Last-Event-ID": last["id"]}) as answer:
        events = (event for event in sse(answer.iter_lines()) if event)
        assert json.loads(next(events)["data"])["text"] == "two"
        idle_worker.release()
        rest = list(events)
    assert rest[-1]["event"] == "finished"
    again = http.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": rest[-1]["id"]})
    assert [event["event"] for event in sse(iter(again.text.splitlines()))] == ["finished"]


def test_events_that_cannot_be_had(http: httpx2.Client) -> None:
    job = submit(http)
    answer = http.get(f"/v1/jobs/{job}/events")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream")
    for place in ("yesterday", "1", "9" * 20 + "-0", "0-" + "9" * 20):
        answer = http.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": place})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Last-Event-ID"), place


def test_a_stream_with_nothing_to_say_shows_that_it_lives(http: httpx2.Client) -> None:
    job = submit(http, stream=True)
    with http.stream("GET", f"/v1/jobs/{job}/events") as answer:
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(4)] == [": keep-alive", "", ": keep-alive", ""]


def test_the_number_of_streams_is_limited(redis_url: str, http: httpx2.Client) -> None:
    job = submit(http, stream=True)
    settings = GatewaySettings(keep_alive=0.1, max_streams=1)
    with GatewayServer(redis_url, settings) as gateway, httpx2.Client(base_url=gateway.url) as client:
        with client.stream("GET", f"/v1/jobs/{job}/events") as first:
            assert first.status_code == 200
            second = client.get(f"/v1/jobs/{job}/events")
            assert (second.status_code, second.json()["error"]["code"]) == (503, "too_many_streams")
            assert "retry-after" in second.headers
        limit = time.monotonic() + 10
        while True:
            with client.stream("GET", f"/v1/jobs/{job}/events") as third:
                if third.status_code == 200:
                    break
            assert time.monotonic() < limit, "the place of the first was not given back"
