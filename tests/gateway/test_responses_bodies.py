"""What /v1/responses cannot do is refused by name."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import pytest

from fake_worker import FakeWorker, register
from millrace_schemas.job import new_job_id

#: A job that never was.
GONE = "demo-01jd3vq6x0m5t9n8q2w4e7r1yz"


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": ["hello"]}, "input[0]"),
        ({"input": [{"role": "user", "content": ""}]}, "input"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "king", "content": "a"}]}, "input[0].role"),
        ({"input": [{"role": ["user"], "content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": "a", "name": "x"}]}, "input[0].name"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "1"}]}, "input[0].type"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"model": None}, "model"),
        ({"instructions": ["a"]}, "instructions"),
        ({"background": "yes"}, "background"),
        ({"store": 1}, "store"),
        ({"stream": "yes"}, "stream"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 5000}, "max_output_tokens"),
        ({"max_output_tokens": "5"}, "max_output_tokens"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 3}, "top_p"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": ["a"], "background": True}, "metadata"),
        ({"metadata": {str(i): "" for i in range(16)}, "background": True}, "metadata"),
        ({"metadata": {"millrace.response": "background"}}, "metadata"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"reasoning": "high"}, "reasoning"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"colour": "red"}}, "text.colour"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"include": ["message.output_text.logprobs", "file_search_call.results"]}, "include"),
        ({"include": "message.output_text.logprobs"}, "include"),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 21}, "top_logprobs"),
        ({"truncation": "auto"}, "truncation"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"max_tool_calls": 1}, "max_tool_calls"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"guided_regex": "a*"}, "guided_regex"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(http: httpx2.Client, given: dict[str, Any], param: str) -> None:
    answer = http.post("/v1/responses", json={"model": "demo", "input": "hello", **given})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert "sampling." not in error["message"]
    assert param.rsplit(".", 1)[-1] in error["message"]


def test_the_gateways_own_pair_counts(http: httpx2.Client, worker: FakeWorker) -> None:
    body: dict[str, Any] = {"model": "demo", "input": "hello", "metadata": {str(i): "" for i in range(16)}}
    refused = http.post("/v1/responses", json={**body, "instructions": "be brief"})
    assert "at most 15 pairs with instructions, not 16" in refused.json()["error"]["message"]
    del body["metadata"]["0"]
    answer = http.post("/v1/responses", json={**body, "instructions": "be brief"})
    assert answer.json()["metadata"] == body["metadata"]


def test_errors_as_openais_exceptions(ai: openai.OpenAI, worker: FakeWorker) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        ai.responses.create(model="nope", input="hello")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        ai.responses.create(model="demo", input="hello", temperature=101)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as tools:
        ai.responses.create(model="demo", input="hello", previous_response_id="resp_1")
    assert (tools.value.param, tools.value.code) == ("previous_response_id", "unsupported_parameter")
    assert not worker.taken


def test_a_model_without_chat_template(ai: openai.OpenAI, redis_url: str) -> None:
    register(redis_url, "plain", has_chat_template=False)
    with pytest.raises(openai.BadRequestError) as refused:
        ai.responses.create(model="plain", input="hello")
    assert (refused.value.param, refused.value.code) == ("input", "no_chat_template")


@pytest.mark.parametrize("id_", ["resp_1", "nonsense", f"resp_{GONE}", GONE])
def test_responses_that_are_not_there(ai: openai.OpenAI, id_: str) -> None:
    for ask in (
        lambda: ai.responses.retrieve(id_),
        lambda: ai.responses.retrieve(id_, stream=True),
        lambda: ai.responses.cancel(id_),
    ):
        with pytest.raises(openai.NotFoundError) as missing:
            ask()
        assert (missing.value.code, missing.value.param) == ("response_not_found", "response_id")


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("stream=yes", "stream"),
        ("stream=true&starting_after=x", "starting_after"),
        ("stream=true&starting_after=-1", "starting_after"),
        ("starting_after=1", "starting_after"),
        ("include[]=message.output_text.logprobs", "include[]"),
        ("stream=true&include_obfuscation=true", "include_obfuscation"),
    ],
)
def test_queries(http: httpx2.Client, query: str, param: str) -> None:
    answer = http.get(f"/v1/responses/resp_{new_job_id('demo')}?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
