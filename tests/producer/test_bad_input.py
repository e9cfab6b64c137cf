"""Every way to ask for something impossible: the error names the field, and nothing is queued."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
import redis

from fake_worker import register
from millrace import Client, ErrorCode, InvalidRequest, Request, Sampling
from millrace_schemas import MAX_JOB_BYTES, QueueKeys

USER = {"role": "user", "content": "hi"}
CASES: list[tuple[dict[str, Any], str, str]] = [
    ({}, "prompt", "exactly one of"),
    ({"prompt": ""}, "prompt", "empty"),
    ({"prompt": 5}, "prompt", "expected str"),
    ({"prompt": b"bytes"}, "prompt", "expected str"),
    ({"prompt": "a", "messages": [USER]}, "prompt", "exactly one of"),
    ({"prompt": "a", "prompt_token_ids": [1]}, "prompt", "exactly one of"),
    ({"prompt": "lone \ud800 surrogate"}, "prompt", "lone surrogate at character 5"),
    ({"prompt": "x" * (MAX_JOB_BYTES + 1)}, "prompt", "at most 4,194,304"),
    ({"system": "s"}, "prompt", "system needs a prompt"),
    ({"system": 3, "prompt": "a"}, "system", "expected str"),
    ({"system": "s", "messages": [USER]}, "system", "first in messages"),
    ({"system": "s", "prompt_token_ids": [1]}, "system", "prompt alone"),
    ({"messages": []}, "messages", "empty"),
    ({"messages": "hi"}, "messages", "got str"),
    ({"messages": USER}, "messages", "got dict"),
    ({"messages": ["user", "hi"]}, "messages", "messages[0]: expected"),
    ({"messages": [USER, ("user", "hi")]}, "messages", "messages[1]: expected"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages", 'messages[0].role: must be "system" or'),
    ({"messages": [{"content": "a"}]}, "messages", "missing required field role"),
    ({"messages": [{"role": "user"}]}, "messages", "missing required field content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages", "messages[0].content: expected str"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages", "messages[0].content"),
    ({"messages": [{**USER, "name": "x"}]}, "messages", "unknown field name"),
    ({"messages": [{"role": "user", "content": "\udfff"}]}, "messages", "messages[0].content is not valid Unicode"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages", "empty"),
    ({"prompt_token_ids": []}, "prompt_token_ids", "empty"),
    ({"prompt_token_ids": "123"}, "prompt_token_ids", "got str"),
    ({"prompt_token_ids": [1.5]}, "prompt_token_ids", "expected int"),
    ({"prompt_token_ids": [-1]}, "prompt_token_ids", "ids"),
    ({"prompt_token_ids": [256]}, "prompt_token_ids", "256 tokens"),
    ({"prompt_token_ids": [1] * 512}, "prompt_token_ids", "512"),
    ({"prompt_token_ids": 7}, "prompt_token_ids", "expected array"),
    ({"prompt": "a", "lane": "fast"}, "lane", 'must be "interactive" or "batch"'),
    ({"prompt": "a", "result_to": "ftp://x"}, "result_to", "s3://bucket/prefix"),
    ({"prompt": "a", "result_to": "s3:///x"}, "result_to", "s3://bucket/prefix"),
    ({"prompt": "a", "result_to": 3}, "result_to", "expected str"),
    ({"prompt": "a", "deadline": "tomorrow"}, "deadline", "got str"),
    ({"prompt": "a", "deadline": True}, "deadline", "got bool"),
    ({"prompt": "a", "deadline": datetime.datetime(2030, 1, 1)}, "deadline", "no time zone"),
    ({"prompt": "a", "deadline": datetime.timedelta(seconds=-1)}, "deadline", "positive"),
    ({"prompt": "a", "deadline": float("nan")}, "deadline", "Unix time"),
    ({"prompt": "a", "deadline": 10**400}, "deadline", "too large"),
    ({"prompt": "a", "stream": "yes"}, "stream", "expected bool"),
    ({"prompt": "a", "metadata": {"a": 1}}, "metadata", "expected str"),
    ({"prompt": "a", "metadata": ["a"]}, "metadata", "expected object"),
    ({"prompt": "a", "metadata": {"": "a"}}, "metadata", "1 to 64"),
    ({"prompt": "a", "metadata": {"k": "\ud800"}}, "metadata", "Unicode"),
    ({"prompt": "a", "metadata": {str(i): "" for i in range(17)}}, "metadata", "16 pairs"),
    ({"prompt": "a", "idempotency_key": ""}, "idempotency_key", "1 to 256"),
    ({"prompt": "a", "idempotency_key": "k" * 257}, "idempotency_key", "1 to 256"),
    ({"prompt": "a", "idempotency_key": 17}, "idempotency_key", "a str"),
    ({"prompt": "a", "idempotency_key": "\ud800"}, "idempotency_key", "Unicode"),
    ({"prompt": "a", "model": "white space"}, "model", "model names have"),
    ({"prompt": "a", "model": 3}, "model", "expected str"),
    ({"prompt": "a", "sampling": "greedy"}, "sampling", "expected Sampling"),
    ({"prompt": "a", "sampling": {"heat": 1}}, "sampling", "heat"),
    ({"prompt": "a", "sampling": {"max_tokens": "5"}}, "sampling.max_tokens", "expected int"),
    ({"prompt": "a", "sampling": {"max_tokens": 0}}, "sampling.max_tokens", "at least 1"),
    ({"prompt": "a", "sampling": {"max_tokens": 513}}, "sampling.max_tokens", "512 tokens"),
    ({"prompt": "a", "sampling": {"max_tokens": 10**30}}, "sampling.max_tokens", "512 tokens"),
    ({"prompt": "a", "sampling": {"min_tokens": 513}}, "sampling.min_tokens", "512 tokens"),
    ({"prompt": "a", "sampling": {"min_tokens": 10**30}}, "sampling.min_tokens", "512 tokens"),
    ({"prompt": "a", "sampling": {"temperature": float("nan")}}, "sampling.temperature", "[0, 100]"),
    ({"prompt": "a", "sampling": {"top_p": 0}}, "sampling.top_p", "(0, 1]"),
    ({"prompt": "a", "sampling": {"seed": 2**64}}, "sampling.seed", ""),
    ({"prompt": "a", "sampling": {"stop": ["ok", 5]}}, "sampling.stop", "expected str"),
    ({"prompt": "a", "sampling": {"stop": "\ud800"}}, "sampling.stop", "Unicode"),
    ({"prompt": "a", "sampling": Sampling(max_tokens=True)}, "sampling.max_tokens", "expected int"),
]


@pytest.mark.parametrize(("arguments", "param", "words"), CASES, ids=lambda v: repr(v)[:40])
def test_the_error_names_the_field(
    client: Client, raw: redis.Redis, keys: QueueKeys, arguments: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.submit(**arguments)
    assert caught.value.param == param
    assert param.split(".")[0] in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert raw.exists(keys.lanes["interactive"]) == 0


def test_codes_are_those_of_a_worker(client: Client) -> None:
    for arguments, code in (
        ({"prompt": "x" * (MAX_JOB_BYTES + 1)}, ErrorCode.JOB_TOO_LARGE),
        ({"prompt_token_ids": [1] * 512}, ErrorCode.CONTEXT_LENGTH_EXCEEDED),
        ({"prompt": "a", "sampling": {"max_tokens": 513}}, ErrorCode.CONTEXT_LENGTH_EXCEEDED),
        ({"prompt": ""}, ErrorCode.INVALID_REQUEST),
    ):
        with pytest.raises(InvalidRequest) as caught:
            client.submit(**arguments)
        assert caught.value.code == code


def test_a_model_without_chat_template_takes_no_chat(redis_url: str) -> None:
    register(redis_url, "base", has_chat_template=False)
    with Client(redis_url, "base") as client:
        for arguments in ({"messages": [USER]}, {"system": "s", "prompt": "a"}):
            with pytest.raises(InvalidRequest, match="model base has no chat template") as caught:
                client.submit(**arguments)
            assert caught.value.code == ErrorCode.NO_CHAT_TEMPLATE
        assert client.submit("a").id


def test_types_of_a_request_that_the_caller_built_are_checked(client: Client) -> None:
    request = Request(model="demo", prompt="a", stream="yes")
    with pytest.raises(InvalidRequest, match=r"^requests\[0\]: stream: expected bool") as caught:
        client.submit_many([request])
    assert caught.value.param == "stream"
    with pytest.raises(InvalidRequest, match=r"^requests\[0\]: no argument is called 'promt'"):
        client.submit_many([{"promt": "a"}])


def test_the_largest_values_that_fit(client: Client) -> None:
    client.submit(prompt_token_ids=[255] * 511, sampling={"max_tokens": 512, "min_tokens": 512})
    client.submit("x" * (MAX_JOB_BYTES - 200))
    client.submit("a", metadata={"k" * 64 if i == 0 else str(i): "v" * 512 for i in range(16)})
    client.submit("a", idempotency_key="k" * 256)
