"""Responses as OpenAI's client sees them: whole, in the background, cancelled, failed, repeated."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
import redis

from fake_worker import FakeWorker, register
from millrace_schemas import (
    Choice,
    ErrorCode,
    ErrorInfo,
    FinishReason,
    JobState,
    Message,
    QueueKeys,
    Request,
    Result,
    Role,
    Usage,
    encode,
)

Stored = Callable[[str], Request]


def until(condition: Callable[[], object], what: str = "") -> None:
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.02)


@pytest.fixture
def finish(raw: redis.Redis, keys: QueueKeys) -> Callable[..., None]:
    """Ends a job as its worker would, with fields of a Result."""

    def end(response_id: str, **fields: Any) -> None:
        job = response_id.removeprefix("resp_")
        result = Result(id=job, model="demo", **fields)
        raw.set(keys.result(job), encode(result))
        raw.hset(keys.job(job), mapping={"state": str(result.state), "finished_at": time.time()})
        raw.publish(keys.done(job), str(result.state))

    return end


def test_a_response(ai: openai.OpenAI, worker: FakeWorker, stored: Stored) -> None:
    answer = ai.responses.create(model="demo", input="hello")
    assert answer.id == f"resp_{worker.taken[0]}"
    assert answer._request_id == worker.taken[0]
    assert (answer.object, answer.status, answer.model, answer.background) == ("response", "completed", "demo", False)
    assert answer.output_text == "HELLO"
    (message,) = answer.output
    assert message.type == "message"
    assert (message.role, message.status) == ("assistant", "completed")
    assert abs(answer.created_at - time.time()) < 60
    assert answer.completed_at is not None
    assert 0 <= answer.completed_at - answer.created_at < 60
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (10, 5, 15)
    assert answer.usage.input_tokens_details.cached_tokens == 8
    assert answer.usage.input_tokens_details.cached_by_tier == {"gpu": 8}
    assert answer.usage.output_tokens_details.reasoning_tokens == 0
    assert (answer.error, answer.incomplete_details, answer.instructions, answer.metadata) == (None, None, None, {})
    # What the types of the package require is there: it builds objects without looking.
    type(answer).model_validate(answer.model_dump(), strict=False)
    assert stored(worker.taken[0]).messages == (Message(Role.USER, "hello"),)
    assert ai.responses.retrieve(answer.id).to_dict() == answer.to_dict()


def test_parameters_reach_the_job_and_come_back(ai: openai.OpenAI, worker: FakeWorker, stored: Stored) -> None:
    items: list[Any] = [
        {"role": "developer", "content": "be kind"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "one "},
                                                        {"type": "input_text", "text": "two"}]},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
         "content": [{"type": "output_text", "text": "2", "annotations": []}]},
        {"role": "user", "content": "more"},
    ]  # fmt: skip
    answer = ai.responses.create(
        model="demo", input=items, instructions="be brief", temperature=0.5, top_p=0.9, max_output_tokens=20,
        metadata={"order": "17"}, store=True, user="me", extra_body={"seed": 7, "stop": "END", "top_k": 3},
    )  # fmt: skip
    request = stored(worker.taken[0])
    assert request.messages == (
        Message(Role.SYSTEM, "be brief"),
        Message(Role.SYSTEM, "be kind"),
        Message(Role.USER, "one two"),
        Message(Role.ASSISTANT, "2"),
        Message(Role.USER, "more"),
    )
    s = request.sampling
    assert (s.temperature, s.top_p, s.max_tokens, s.seed, s.stop, s.top_k) == (0.5, 0.9, 20, 7, ("END",), 3)
    assert (answer.instructions, answer.metadata) == ("be brief", {"order": "17"})
    assert (answer.temperature, answer.top_p, answer.max_output_tokens) == (0.5, 0.9, 20)
    # An answer's items go back in as they came, and a system message is no instructions.
    more: Any = [*items, *answer.output, {"role": "user", "content": "on"}]
    assert ai.responses.create(model="demo", input=more).instructions is None
    assert stored(worker.taken[1]).messages[-2:] == (Message(Role.ASSISTANT, "MORE"), Message(Role.USER, "on"))


def test_values_that_ask_for_nothing_are_taken(ai: openai.OpenAI, worker: FakeWorker) -> None:
    answer = ai.responses.create(
        model="demo", input="a", tools=[], tool_choice="auto", parallel_tool_calls=True, truncation="disabled",
        include=[], text={"format": {"type": "text"}}, reasoning={"effort": None}, store=False, service_tier="auto",
        previous_response_id=None, background=False, top_logprobs=0, metadata={str(i): "" for i in range(16)},
    )  # fmt: skip
    assert answer.output_text == "A"
    assert len(answer.metadata or {}) == 16


def test_in_the_background(ai: openai.OpenAI, idle_worker: FakeWorker) -> None:
    made = ai.responses.create(
        model="demo", input="hello", background=True, instructions="be brief", metadata={"order": "17"}
    )
    assert made.status in ("queued", "in_progress")
    assert (made.background, made.instructions, made.metadata) == (True, "be brief", {"order": "17"})
    assert (made.output, made.usage, made.completed_at) == ([], None, None)
    until(lambda: ai.responses.retrieve(made.id).status == "in_progress")
    idle_worker.release()
    until(lambda: ai.responses.retrieve(made.id).status == "completed")
    done = ai.responses.retrieve(made.id)
    assert done.output_text == "HELLO"
    assert (done.background, done.instructions, done.metadata) == (True, "be brief", {"order": "17"})


def test_cancelling_a_queued_response(ai: openai.OpenAI, gateway: object) -> None:
    made = ai.responses.create(model="demo", input="hello", background=True)
    assert made.status == "queued"
    cancelled = ai.responses.cancel(made.id)
    assert (cancelled.id, cancelled.status, cancelled.output, cancelled.error) == (made.id, "cancelled", [], None)
    assert ai.responses.cancel(made.id).to_dict() == cancelled.to_dict()
    assert ai.responses.retrieve(made.id).status == "cancelled"


def test_cancelling_a_running_response(
    ai: openai.OpenAI, idle_worker: FakeWorker, raw: redis.Redis, keys: QueueKeys, finish: Callable[..., None]
) -> None:
    made = ai.responses.create(model="demo", input="hello", background=True)
    until(lambda: idle_worker.taken)
    # Its worker was told, and does nothing yet.
    assert ai.responses.cancel(made.id).status == "in_progress"
    assert raw.hget(keys.job(idle_worker.taken[0]), "cancel_requested") == b"1"
    error = ErrorInfo(ErrorCode.CANCELLED, "cancelled")
    part = Choice(0, "HE", (1,), FinishReason.STOP)
    finish(made.id, state=JobState.CANCELLED, error=error, choices=(part,), usage=Usage(10, 1, 0))
    ended = ai.responses.cancel(made.id)
    assert (ended.status, ended.output_text, ended.error) == ("cancelled", "HE", None)
    assert ended.output[0].to_dict()["status"] == "incomplete"
    assert ended.usage is not None
    assert ended.usage.output_tokens == 1


def test_cancel_waits_for_the_worker(ai: openai.OpenAI, idle_worker: FakeWorker) -> None:
    made = ai.responses.create(model="demo", input="hello", background=True)
    until(lambda: idle_worker.taken)
    # The fake worker looks at the mark when it goes on.
    later = threading.Timer(0.3, idle_worker.release)
    later.start()
    assert ai.responses.cancel(made.id).status == "cancelled"
    later.join()


def test_only_background_responses_can_be_cancelled(ai: openai.OpenAI, worker: FakeWorker) -> None:
    made = ai.responses.create(model="demo", input="hello")
    with pytest.raises(openai.BadRequestError, match="background"):
        ai.responses.cancel(made.id)
    late = ai.responses.create(model="demo", input="hello", background=True)
    until(lambda: ai.responses.retrieve(late.id).status == "completed")
    assert ai.responses.cancel(late.id).status == "completed"


def test_a_response_that_fails(ai: openai.OpenAI, worker: FakeWorker) -> None:
    with pytest.raises(openai.InternalServerError, match="told to fail") as failed:
        ai.with_options(max_retries=0).responses.create(model="demo", input="fail please")
    assert failed.value.code == "internal"
    made = ai.responses.create(model="demo", input="fail please", background=True)
    until(lambda: ai.responses.retrieve(made.id).status == "failed")
    found = ai.responses.retrieve(made.id)
    assert found.error is not None
    assert found.error.code == "server_error"
    assert "told to fail" in found.error.message
    assert (found.output, found.usage, found.completed_at) == ([], None, None)


@pytest.mark.parametrize(
    ("code", "state", "expected"),
    [
        (ErrorCode.CONTEXT_LENGTH_EXCEEDED, JobState.FAILED, "invalid_prompt"),
        (ErrorCode.TOO_MANY_ATTEMPTS, JobState.FAILED, "server_error"),
        (ErrorCode.DEADLINE_EXCEEDED, JobState.EXPIRED, "server_error"),
    ],
)
def test_codes_of_failures(
    ai: openai.OpenAI, gateway: object, finish: Callable[..., None], code: ErrorCode, state: JobState, expected: str
) -> None:
    made = ai.responses.create(model="demo", input="hello", background=True)
    finish(made.id, state=state, error=ErrorInfo(code, "no"))
    found = ai.responses.retrieve(made.id)
    assert found.status == "failed"
    assert found.error is not None
    assert (found.error.code, found.error.message) == (expected, f"no [{code}]")


def test_an_answer_that_is_cut_off(ai: openai.OpenAI, gateway: object, finish: Callable[..., None]) -> None:
    made = ai.responses.create(model="demo", input="hello", background=True, max_output_tokens=2)
    choice = Choice(0, "HE", (1, 2), FinishReason.LENGTH)
    finish(made.id, state=JobState.COMPLETED, choices=(choice,), usage=Usage(10, 2, 0))
    found = ai.responses.retrieve(made.id)
    assert (found.status, found.output_text, found.max_output_tokens) == ("incomplete", "HE", 2)
    assert found.incomplete_details is not None
    assert found.incomplete_details.reason == "max_output_tokens"
    assert found.output[0].to_dict()["status"] == "incomplete"
    assert found.usage is not None
    assert (found.completed_at, found.error) == (None, None)


def test_one_key_makes_one_response(ai: openai.OpenAI, worker: FakeWorker) -> None:
    key = {"Idempotency-Key": "order-17"}
    first = ai.responses.create(model="demo", input="hello", extra_headers=key)
    second = ai.responses.create(model="demo", input="other", extra_headers=key)
    assert first.to_dict() == second.to_dict()
    assert len(worker.taken) == 1
    made = ai.responses.create(model="demo", input="hello", background=True, extra_headers={"Idempotency-Key": "b"})
    until(lambda: ai.responses.retrieve(made.id).status == "completed")
    again = ai.responses.create(model="demo", input="hello", background=True, extra_headers={"Idempotency-Key": "b"})
    assert (again.id, again.status) == (made.id, "completed")
    assert len(worker.taken) == 2


def test_a_repeat_that_streams_what_did_not(http: httpx2.Client, worker: FakeWorker) -> None:
    body, key = {"model": "demo", "input": "hello"}, {"Idempotency-Key": "k"}
    assert http.post("/v1/responses", json=body, headers=key).status_code == 200
    answer = http.post("/v1/responses", json={**body, "stream": True}, headers=key)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "mine"}])
def test_a_client_that_leaves_cancels_its_response_unless_it_has_a_key(
    http: httpx2.Client, idle_worker: FakeWorker, raw: redis.Redis, keys: QueueKeys, stream: bool, key: dict[str, str]
) -> None:
    body = {"model": "demo", "input": "hello", "stream": stream}
    for headers in (key, {}):
        with pytest.raises(httpx2.ReadTimeout):
            http.post("/v1/responses", json=body, headers=headers, timeout=0.2)
    # The second, which has no key, shows that the gateway has seen both leave.
    until(lambda: any(raw.hget(name, "cancel_requested") for name in raw.scan_iter(keys.job("*"))))
    until(lambda: idle_worker.taken)
    assert (raw.hget(keys.job(idle_worker.taken[0]), "cancel_requested") is None) is bool(key)


def test_a_client_that_leaves_never_cancels_what_runs_in_the_background(
    http: httpx2.Client, idle_worker: FakeWorker, raw: redis.Redis, keys: QueueKeys
) -> None:
    body = {"model": "demo", "input": "hello", "stream": True}
    with pytest.raises(httpx2.ReadTimeout):
        http.post("/v1/responses", json={**body, "background": True}, timeout=0.2)
    until(lambda: idle_worker.taken)
    with pytest.raises(httpx2.ReadTimeout):
        http.post("/v1/responses", json=body, timeout=0.2)
    until(lambda: any(raw.hget(name, "cancel_requested") for name in raw.scan_iter(keys.job("*"))))
    assert raw.hget(keys.job(idle_worker.taken[0]), "cancel_requested") is None
    idle_worker.release()
    until(lambda: raw.hget(keys.job(idle_worker.taken[0]), "state") == b"completed")


def test_models_with_a_slash(ai: openai.OpenAI, redis_url: str) -> None:
    register(redis_url, "org/large.v2")
    made = ai.responses.create(model="org/large.v2", input="hello", background=True)
    assert made.id.startswith("resp_org--large.v2-")
    assert ai.responses.retrieve(made.id).model == "org/large.v2"


def test_nothing_is_deleted_or_listed(ai: openai.OpenAI, worker: FakeWorker) -> None:
    made = ai.responses.create(model="demo", input="hello")
    with pytest.raises(openai.APIStatusError, match="cannot be deleted") as refused:
        ai.responses.delete(made.id)
    assert refused.value.status_code == 405
    assert "GET" in refused.value.response.headers["allow"]
    assert ai.responses.retrieve(made.id).output_text == "HELLO"
    with pytest.raises(openai.NotFoundError) as missing:
        ai.responses.input_items.list(made.id)
    assert (missing.value.code, missing.value.type) == ("unknown_url", "invalid_request_error")
