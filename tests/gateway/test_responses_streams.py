"""Typed events with numbers that every reading of a job repeats."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest
import redis

from fake_worker import FakeWorker
from gateway_server import GatewayServer
from millrace.gateway import GatewaySettings
from millrace_schemas import (
    Choice,
    ErrorCode,
    ErrorInfo,
    Finished,
    FinishReason,
    JobState,
    QueueKeys,
    Result,
    Started,
    Tokens,
    Usage,
    encode,
)

Finish = Callable[..., None]
STORY = [
    "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    "response.output_text.delta", "response.output_text.delta", "response.output_text.done",
    "response.content_part.done", "response.output_item.done", "response.completed",
]  # fmt: skip


def until(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.fixture
def finish(raw: redis.Redis, keys: QueueKeys, idle_worker: FakeWorker) -> Finish:
    """Ends a job as its worker would, its last event included."""

    def end(job: str, text: str = "", reason: FinishReason = FinishReason.STOP, **fields: Any) -> None:
        if text:
            fields["choices"] = (Choice(0, text, (1,), reason),)
        result = Result(**{"id": job, "model": "demo", "state": JobState.COMPLETED, **fields})
        raw.set(keys.result(job), encode(result))
        raw.hset(keys.job(job), mapping={"state": str(result.state), "finished_at": time.time()})
        idle_worker.publish(job, Finished(result))

    return end


def told(events: Any) -> list[dict[str, Any]]:
    return [event.to_dict() for event in events]


def test_a_stream(ai: openai.OpenAI, worker: FakeWorker) -> None:
    events = list(ai.responses.create(model="demo", input="hello", stream=True))
    assert [event.type for event in events] == STORY
    assert [event.sequence_number for event in events] == list(range(10))
    for event in events:
        type(event).model_validate(event.to_dict())
    created, *_, last = events
    assert created.type == "response.created"
    assert last.type == "response.completed"
    assert created.response.id == last.response.id == f"resp_{worker.taken[0]}"
    assert (created.response.status, last.response.status, last.response.output_text) == (
        "in_progress", "completed", "HELLO",
    )  # fmt: skip
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == ["H", "ELLO"]
    assert [event.text for event in events if event.type == "response.output_text.done"] == ["HELLO"]
    item = f"msg_{worker.taken[0]}"
    assert {event.item_id for event in events if hasattr(event, "item_id")} == {item}
    assert {event.item.id for event in events if hasattr(event, "item")} == {item}
    assert ai.responses.retrieve(created.response.id).to_dict() == last.response.to_dict()


def test_the_helper_that_collects_a_stream(ai: openai.OpenAI, worker: FakeWorker) -> None:
    with ai.responses.stream(model="demo", input="hello") as stream:
        final = stream.get_final_response()
    assert (final.status, final.output_text) == ("completed", "HELLO")
    with ai.responses.stream(response_id=final.id, starting_after=5) as stream:
        assert [event.sequence_number for event in stream] == [6, 7, 8, 9]


def test_the_lines_of_a_stream(http: httpx2.Client, worker: FakeWorker) -> None:
    answer = http.post("/v1/responses", json={"model": "demo", "input": "hello", "stream": True})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["x-request-id"] == worker.taken[0]
    events = [part for part in answer.text.split("\n\n") if part and not part.startswith(":")]
    assert [part.split("\n")[0] for part in events] == [f"event: {name}" for name in STORY]


def test_going_on_behind_the_last_event(
    ai: openai.OpenAI, idle_worker: FakeWorker, finish: Finish, raw: redis.Redis, keys: QueueKeys
) -> None:
    stream = ai.responses.create(model="demo", input="hello", stream=True, background=True)
    reading: Iterator[Any] = iter(stream)
    seen = [next(reading), next(reading)]
    assert [event.type for event in seen] == ["response.created", "response.queued"]
    assert [event.response.status for event in seen] == ["queued", "queued"]
    until(lambda: idle_worker.taken)
    job = idle_worker.taken[0]
    for event in (Started(1), Tokens(0, (1,), "HE"), Tokens(1, (2,), "")):
        idle_worker.publish(job, event)
    seen += [next(reading) for _ in range(4)]
    assert seen[-1].type == "response.output_text.delta"
    stream.close()

    # Another attempt goes on where the first one stopped.
    for event in (Tokens(2, (3,), "L"), Started(2, 3), Tokens(3, (4,), "LO")):
        idle_worker.publish(job, event)
    rest = iter(ai.responses.retrieve(f"resp_{job}", stream=True, starting_after=seen[-1].sequence_number))
    seen += [next(rest), next(rest)]
    assert raw.hget(keys.job(job), "cancel_requested") is None
    finish(job, "HELLO", usage=Usage(10, 4, 0))
    seen += list(rest)
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert [event.delta for event in seen if event.type == "response.output_text.delta"] == ["HE", "L", "LO"]
    assert [event.type for event in seen].count("response.in_progress") == 1
    assert seen[-1].type == "response.completed"

    # Every later reading tells the same, number by number, from any point on.
    assert told(ai.responses.retrieve(f"resp_{job}", stream=True)) == told(seen)
    for number in range(len(seen)):
        assert told(ai.responses.retrieve(f"resp_{job}", stream=True, starting_after=number)) == told(
            seen[number + 1 :]
        )


def test_another_gateway_goes_on(ai: openai.OpenAI, worker: FakeWorker, redis_url: str) -> None:
    events = list(ai.responses.create(model="demo", input="hello", stream=True, background=True))
    id_ = f"resp_{worker.taken[0]}"
    with (
        GatewayServer(redis_url, GatewaySettings()) as other,
        openai.OpenAI(base_url=f"{other.url}/v1", api_key="none", timeout=20) as there,
    ):
        assert told(there.responses.retrieve(id_, stream=True, starting_after=3)) == told(events[4:])


def test_a_reader_that_leaves_cancels_nothing(
    ai: openai.OpenAI, idle_worker: FakeWorker, finish: Finish, raw: redis.Redis, keys: QueueKeys
) -> None:
    made = ai.responses.create(model="demo", input="hello", stream=True, extra_headers={"Idempotency-Key": "k"})
    until(lambda: idle_worker.taken)
    job = idle_worker.taken[0]
    again = ai.responses.retrieve(f"resp_{job}", stream=True)
    next(iter(again))
    again.close()
    finish(job, "HELLO")
    assert [event.type for event in made][-1] == "response.completed"
    assert raw.hget(keys.job(job), "cancel_requested") is None


def test_a_stream_that_is_cut_off(ai: openai.OpenAI, idle_worker: FakeWorker, finish: Finish) -> None:
    stream = ai.responses.create(model="demo", input="hello", stream=True, max_output_tokens=2)
    until(lambda: idle_worker.taken)
    idle_worker.publish(idle_worker.taken[0], Started(1))
    idle_worker.publish(idle_worker.taken[0], Tokens(0, (1,), "H"))
    # The rest of the text came with the result alone.
    finish(idle_worker.taken[0], "HE", FinishReason.LENGTH, usage=Usage(10, 2, 0))
    events = list(stream)
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details is not None
    assert last.response.incomplete_details.reason == "max_output_tokens"
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == ["H", "E"]
    assert [event.item.to_dict()["status"] for event in events if event.type == "response.output_item.done"] == [
        "incomplete"
    ]


def test_an_empty_answer_is_a_message(ai: openai.OpenAI, idle_worker: FakeWorker, finish: Finish) -> None:
    stream = ai.responses.create(model="demo", input="hello", stream=True)
    until(lambda: idle_worker.taken)
    idle_worker.publish(idle_worker.taken[0], Started(1))
    finish(idle_worker.taken[0])
    events = list(stream)
    assert [event.type for event in events] == [name for name in STORY if not name.endswith(".delta")]
    last: Any = events[-1]
    assert (last.response.output_text, len(last.response.output)) == ("", 1)


def test_a_stream_that_fails(ai: openai.OpenAI, worker: FakeWorker) -> None:
    events = list(ai.responses.create(model="demo", input="fail please", stream=True))
    assert [event.type for event in events] == ["response.created", "response.in_progress", "response.failed"]
    last = events[-1]
    assert last.type == "response.failed"
    assert last.response.status == "failed"
    assert last.response.error is not None
    assert "told to fail" in last.response.error.message


def test_a_stream_that_fails_in_the_middle(ai: openai.OpenAI, idle_worker: FakeWorker, finish: Finish) -> None:
    stream = ai.responses.create(model="demo", input="hello", stream=True)
    until(lambda: idle_worker.taken)
    idle_worker.publish(idle_worker.taken[0], Started(1))
    idle_worker.publish(idle_worker.taken[0], Tokens(0, (1,), "H"))
    finish(idle_worker.taken[0], state=JobState.FAILED, error=ErrorInfo(ErrorCode.ENGINE_FAILED, "gone"))
    assert [event.type for event in stream] == [*STORY[:5], *STORY[6:9], "response.failed"]


def test_a_stream_that_is_cancelled(ai: openai.OpenAI, gateway: GatewayServer) -> None:
    stream = ai.responses.create(model="demo", input="hello", stream=True, background=True)
    reading = iter(stream)
    first: Any = next(reading)
    assert ai.responses.cancel(first.response.id).status == "cancelled"
    rest: list[Any] = list(reading)
    assert [event.type for event in rest] == ["response.queued", "response.incomplete"]
    assert (rest[-1].response.status, rest[-1].response.incomplete_details) == ("cancelled", None)


def test_an_error_in_a_stream_has_no_number_of_its_own(
    ai: openai.OpenAI, gateway: GatewayServer, raw: redis.Redis, keys: QueueKeys
) -> None:
    reading: Iterator[Any] = iter(ai.responses.create(model="demo", input="hello", stream=True))
    created = next(reading)
    raw.delete(keys.job(created.response.id.removeprefix("resp_")))
    (error,) = reading
    assert (error.type, error.code) == ("error", "job_not_found")
    assert error.sequence_number == created.sequence_number


def test_what_did_not_stream_has_no_events(ai: openai.OpenAI, worker: FakeWorker) -> None:
    made = ai.responses.create(model="demo", input="hello")
    with pytest.raises(openai.BadRequestError) as refused:
        ai.responses.retrieve(made.id, stream=True)
    assert refused.value.param == "stream"


def test_a_refused_stream_gives_its_place_back(redis_url: str, worker: FakeWorker) -> None:
    body: dict[str, Any] = {"model": "demo", "input": "hello"}
    key = {"Idempotency-Key": "k"}
    with GatewayServer(redis_url, GatewaySettings(max_streams=1)) as server, httpx2.Client(base_url=server.url) as http:
        made = http.post("/v1/responses", json=body, headers=key).json()["id"]
        for _ in range(2):
            assert http.post("/v1/responses", json={**body, "stream": True}, headers=key).status_code == 400
            assert http.post("/v1/responses", json={**body, "model": "x", "stream": True}).status_code == 404
            assert http.get(f"/v1/responses/{made}?stream=true").status_code == 400
        worker.hold()
        background = {**body, "stream": True, "background": True}
        with http.stream("POST", "/v1/responses", json=background) as first:
            assert first.status_code == 200
            full = http.post("/v1/responses", json=background)
            assert (full.status_code, full.json()["error"]["code"]) == (503, "too_many_streams")
        worker.release()
