from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
import redis

from fake_worker import FakeWorker, register
from millrace_schemas import Message, QueueKeys, Request, Role

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
Stored = Callable[[str], Request]


def test_an_answer(ai: openai.OpenAI, worker: FakeWorker) -> None:
    answer = ai.chat.completions.create(model="demo", messages=HELLO)
    assert answer.object == "chat.completion"
    assert answer.model == "demo"
    assert abs(answer.created - time.time()) < 60
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason) == (0, "stop")
    assert (choice.message.role, choice.message.content) == ("assistant", "HELLO")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (10, 5, 15)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 8
    assert answer.usage.prompt_tokens_details.cached_by_tier == {"gpu": 8}
    assert answer.id == f"chatcmpl-{worker.taken[0]}"
    assert answer._request_id == worker.taken[0]


def test_a_stream(ai: openai.OpenAI, worker: FakeWorker) -> None:
    chunks = list(ai.chat.completions.create(model="demo", messages=HELLO, stream=True))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk.id for chunk in chunks} == {f"chatcmpl-{worker.taken[0]}"}
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert [delta.role for delta in deltas[1:]] == [None] * (len(deltas) - 1)
    assert [delta.content for delta in deltas] == ["", "H", "ELLO", None]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "stop"]
    assert [chunk.usage for chunk in chunks] == [None] * 4


def test_a_stream_ends_with_usage_when_asked(ai: openai.OpenAI, worker: FakeWorker) -> None:
    options: Any = {"include_usage": True}
    stream = ai.chat.completions.create(model="demo", messages=HELLO, stream=True, stream_options=options)
    *chunks, last = list(stream)
    assert len(chunks) == 4
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 15
    assert last.usage.prompt_tokens_details is not None
    assert last.usage.prompt_tokens_details.cached_tokens == 8


def test_the_lines_of_a_stream(http: httpx2.Client, worker: FakeWorker) -> None:
    body = {"model": "demo", "messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert "content-length" not in answer.headers
    events = [line for line in answer.text.split("\n\n") if not line.startswith(":")]
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 4
    assert chunks[0]["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]


def test_parameters_reach_the_job(ai: openai.OpenAI, worker: FakeWorker, stored: Stored) -> None:
    answer = ai.chat.completions.create(
        model="demo",
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]},
            {"role": "assistant", "content": "2", "refusal": None},
            {"role": "user", "content": "more"},
        ],
        temperature=0.5,
        top_p=0.9,
        seed=7,
        stop="END",
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        max_completion_tokens=20,
        logit_bias={"17": -100, "0": 1.5},
        metadata={"order": "17"},
        user="me",
        extra_body={
            "top_k": -1,
            "min_p": 0.1,
            "min_tokens": 2,
            "stop_token_ids": [5],
            "ignore_eos": True,
            "repetition_penalty": 1.2,
        },
    )
    request = stored(answer.id)
    assert request.messages == (
        Message(Role.SYSTEM, "be brief"),
        Message(Role.USER, "one two"),
        Message(Role.ASSISTANT, "2"),
        Message(Role.USER, "more"),
    )
    s = request.sampling
    assert (s.temperature, s.top_p, s.seed, s.stop, s.max_tokens) == (0.5, 0.9, 7, ("END",), 20)
    assert (s.presence_penalty, s.frequency_penalty, s.repetition_penalty) == (0.5, -0.5, 1.2)
    assert s.logit_bias == {17: -100.0, 0: 1.5}
    assert (s.top_k, s.min_p, s.min_tokens, s.stop_token_ids, s.ignore_eos) == (0, 0.1, 2, (5,), True)
    assert request.metadata == {"order": "17"}
    assert not request.stream


def test_defaults_are_openais(ai: openai.OpenAI, worker: FakeWorker, stored: Stored) -> None:
    sampling = stored(ai.chat.completions.create(model="demo", messages=HELLO).id).sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.stop) == (1.0, 1.0, None, ())
    completion = stored(ai.completions.create(model="demo", prompt="a").id).sampling
    assert completion.max_tokens == 16


def test_values_that_ask_for_nothing_are_taken(ai: openai.OpenAI, worker: FakeWorker, stored: Stored) -> None:
    answer = ai.chat.completions.create(
        model="demo", messages=HELLO, n=1, logprobs=False, tools=[], tool_choice="auto", presence_penalty=0,
        frequency_penalty=0.0, logit_bias={}, response_format={"type": "text"}, store=False, service_tier="auto",
        stop=["a", "b"], max_tokens=9, parallel_tool_calls=True,
    )  # fmt: skip
    assert stored(answer.id).sampling.stop == ("a", "b")
    assert stored(answer.id).sampling.max_tokens == 9


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"top_logprobs": False}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": "few"}, "top_logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": "some"}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"5": "much"}}, "logit_bias"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": [5, 1]}, "logit_bias"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"guided_regex": "a*"}, "guided_regex"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "include_obfuscation"),
        ({"stream": "yes"}, "stream"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 3}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": -2}, "top_k"),
        ({"seed": -1}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_completion_tokens": 5000}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "messages[0].role"),
        ({"messages": [*HELLO, {"role": "tool", "content": "a", "tool_call_id": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "user", "content": "a", "name": "x"}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(http: httpx2.Client, given: dict[str, Any], param: str) -> None:
    answer = http.post("/v1/chat/completions", json={"model": "demo", "messages": HELLO, **given})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert "sampling." not in error["message"]
    if param.isidentifier():
        assert param.rsplit(".", 1)[-1] in error["message"]


def test_a_refused_request_makes_no_job(http: httpx2.Client, worker: FakeWorker) -> None:
    assert http.post("/v1/chat/completions", json={"model": "demo", "messages": HELLO, "n": 2}).status_code == 400
    assert http.post("/v1/chat/completions", json={"model": "demo", "messages": HELLO}).status_code == 200
    assert len(worker.taken) == 1


def test_errors_as_openais_exceptions(ai: openai.OpenAI, worker: FakeWorker) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        ai.chat.completions.create(model="nope", messages=HELLO)
    assert missing.value.code == "model_not_found"
    assert "demo" in missing.value.message
    with pytest.raises(openai.BadRequestError) as refused:
        ai.chat.completions.create(model="demo", messages=HELLO, temperature=101)
    assert (refused.value.param, refused.value.code) == ("temperature", "invalid_request")
    assert not worker.taken


@pytest.mark.parametrize("stream", [False, True])
def test_a_job_that_fails(ai: openai.OpenAI, worker: FakeWorker, stream: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": "fail please"}]
    with pytest.raises(openai.APIError) as failed:
        list(ai.with_options(max_retries=0).chat.completions.create(model="demo", messages=messages, stream=stream))
    assert failed.value.code == "internal"
    assert "told to fail" in failed.value.message
    assert isinstance(failed.value, openai.InternalServerError) is not stream


def test_completions(ai: openai.OpenAI, worker: FakeWorker, stored: Stored) -> None:
    answer = ai.completions.create(model="demo", prompt="once", max_tokens=4)
    assert (answer.object, answer.choices[0].text, answer.choices[0].finish_reason) == (
        "text_completion", "ONCE", "stop",
    )  # fmt: skip
    assert answer.usage is not None
    assert answer.usage.total_tokens == 14
    assert stored(answer.id).prompt == "once"
    ids = ai.completions.create(model="demo", prompt=[5, 6])
    assert stored(ids.id).prompt_token_ids == (5, 6)
    assert stored(ai.completions.create(model="demo", prompt=[[7]]).id).prompt_token_ids == (7,)
    stream = list(ai.completions.create(model="demo", prompt=["once"], stream=True))
    assert [chunk.choices[0].text for chunk in stream] == ["O", "NCE", ""]
    assert [chunk.choices[0].finish_reason for chunk in stream] == [None, None, "stop"]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, "b"]}, "prompt"),
        ({"prompt": [999]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"messages": HELLO}, "messages"),
    ],
)
def test_bad_completions(http: httpx2.Client, given: dict[str, Any], param: str) -> None:
    answer = http.post("/v1/completions", json={"model": "demo", "prompt": "a", **given})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_models(ai: openai.OpenAI, redis_url: str) -> None:
    register(redis_url, "org/large", max_model_len=99)
    found = ai.models.list().data
    assert [(model.id, model.object, model.owned_by) for model in found] == [
        ("demo", "model", "millrace"), ("org/large", "model", "millrace"),
    ]  # fmt: skip
    one = ai.models.retrieve("org/large")
    assert one.id == "org/large"
    assert one.model_extra is not None
    assert one.model_extra["max_model_len"] == 99
    with pytest.raises(openai.NotFoundError) as missing:
        ai.models.retrieve("nope")
    assert missing.value.code == "model_not_found"


def test_a_cache_salt_is_the_jobs(http: httpx2.Client, worker: FakeWorker, stored: Stored) -> None:
    """Under vLLM's name, on every endpoint that makes a job."""
    bodies = {
        "chat/completions": {"messages": HELLO},
        "completions": {"prompt": "a"},
        "responses": {"input": "a"},
        "jobs": {"prompt": "a"},
    }
    for path, body in bodies.items():
        answer = http.post(f"/v1/{path}", json={"model": "demo", "cache_salt": "x", **body})
        assert answer.is_success, answer.text
        assert stored(answer.headers.get("x-request-id") or answer.json()["id"]).cache_salt == "x"
        for wrong in (5, "x" * 257):
            refused = http.post(f"/v1/{path}", json={"model": "demo", "cache_salt": wrong, **body})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "cache_salt")


def test_a_pin_is_asked_for_on_every_endpoint(http: httpx2.Client, worker: FakeWorker, stored: Stored) -> None:
    bodies = {
        "chat/completions": {"messages": HELLO},
        "completions": {"prompt": "a"},
        "responses": {"input": "a"},
        "jobs": {"prompt": "a"},
    }
    for path, body in bodies.items():
        answer = http.post(f"/v1/{path}", json={"model": "demo", "cache": "pin", "cache_ttl": 90, **body})
        assert answer.is_success, answer.text
        request = stored(answer.headers.get("x-request-id") or answer.json()["id"])
        assert (request.cache, request.cache_ttl) == ("pin", 90.0)
        for wrong, param in (
            ({"cache": "keep"}, "cache"),
            ({"cache": 5}, "cache"),
            ({"cache": "pin", "cache_ttl": 5}, "cache_ttl"),
            ({"cache": "pin", "cache_ttl": "90"}, "cache_ttl"),
            ({"cache_ttl": 90}, "cache_ttl"),
        ):
            refused = http.post(f"/v1/{path}", json={"model": "demo", **wrong, **body})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), refused.text


def test_what_became_of_a_pin_is_in_the_job(http: httpx2.Client, worker: FakeWorker, raw: redis.Redis) -> None:
    job = http.post("/v1/jobs", json={"model": "demo", "prompt": "a", "cache": "pin"}).json()["id"]
    found = http.get(f"/v1/jobs/{job}?wait=10").json()
    assert (found["pin"], found["pin_problem"]) == (None, None)
    raw.hset(QueueKeys("demo").job(job), mapping={"pin": "pin_1", "pin_problem": "none"})
    found = http.get(f"/v1/jobs/{job}").json()
    assert (found["pin"], found["pin_problem"]) == ("pin_1", "none")
