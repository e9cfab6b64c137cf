"""A Request that no worker could run is refused where it is made, and the error names the field."""

from __future__ import annotations

from typing import Any

import pytest

from millrace_schemas import ErrorCode, ErrorInfo, InvalidRequest, Message, Request, Role
from millrace_schemas.job import (
    MAX_CACHE_SALT,
    MAX_MESSAGES,
    MAX_METADATA_KEY,
    MAX_METADATA_PAIRS,
    MAX_METADATA_VALUE,
    MAX_MODEL_NAME,
    MAX_TENANT_NAME,
)
from millrace_schemas.webhook import MAX_WEBHOOK_URL

USER = Message(Role.USER, "hello")

BAD: list[tuple[str, dict[str, Any]]] = [
    ("model", {"model": ""}),
    ("model", {"model": "x" * (MAX_MODEL_NAME + 1)}),
    ("model", {"model": "with space"}),
    ("model", {"model": "brace{d}"}),
    ("model", {"model": "colon:ed"}),
    ("model", {"model": "modèle"}),
    ("prompt", {"prompt": None}),
    ("prompt", {"prompt": ""}),
    ("prompt", {"messages": (USER,)}),
    ("prompt", {"prompt_token_ids": (1,)}),
    ("prompt_token_ids", {"prompt": None, "prompt_token_ids": ()}),
    ("prompt_token_ids", {"prompt": None, "prompt_token_ids": (1, -1)}),
    ("prompt_token_ids", {"prompt": None, "prompt_token_ids": (2**31,)}),
    ("messages", {"prompt": None, "messages": ()}),
    ("messages", {"prompt": None, "messages": (USER,) * (MAX_MESSAGES + 1)}),
    ("messages", {"prompt": None, "messages": (Message(Role.SYSTEM, ""), Message(Role.USER, ""))}),
    ("result_to", {"result_to": ""}),
    ("result_to", {"result_to": "file:///tmp"}),
    ("result_to", {"result_to": "s3://"}),
    ("result_to", {"result_to": "s3:///prefix"}),
    ("deadline", {"deadline": 0.0}),
    ("deadline", {"deadline": -5.0}),
    ("deadline", {"deadline": 1.8e12}),  # milliseconds
    ("deadline", {"deadline": float("nan")}),
    ("metadata", {"metadata": {str(i): "" for i in range(MAX_METADATA_PAIRS + 1)}}),
    ("metadata", {"metadata": {"": "x"}}),
    ("metadata", {"metadata": {"k" * (MAX_METADATA_KEY + 1): "x"}}),
    ("metadata", {"metadata": {"k": "v" * (MAX_METADATA_VALUE + 1)}}),
    ("tenant", {"tenant": "a/b"}),
    ("tenant", {"tenant": "x" * (MAX_TENANT_NAME + 1)}),
    ("cache_salt", {"cache_salt": "x" * (MAX_CACHE_SALT + 1)}),
    ("cache", {"cache": "keep"}),
    ("cache_ttl", {"cache_ttl": 600}),
    ("cache_ttl", {"cache": "pin", "cache_ttl": 59.9}),
    ("cache_ttl", {"cache": "pin", "cache_ttl": 30 * 86_400 + 1}),
    ("cache_ttl", {"cache": "pin", "cache_ttl": float("nan")}),
    ("webhook", {"webhook": ""}),
    ("webhook", {"webhook": "example.com/hook"}),
    ("webhook", {"webhook": "ftp://example.com/"}),
    ("webhook", {"webhook": "https:///path"}),
    ("webhook", {"webhook": "https://user:secret@example.com/"}),
    ("webhook", {"webhook": "https://example.com/#part"}),
    ("webhook", {"webhook": "https://example.com/a b"}),
    ("webhook", {"webhook": "https://exämple.com/"}),
    ("webhook", {"webhook": "https://example.com:0/"}),
    ("webhook", {"webhook": "https://example.com:99999/"}),
    ("webhook", {"webhook": "https://[::1/"}),
    ("webhook", {"webhook": "https://example.com/".ljust(MAX_WEBHOOK_URL + 1, "x")}),
]

GOOD: list[dict[str, Any]] = [
    {"model": "x" * MAX_MODEL_NAME},
    {"model": "org/Model-7B_v1.5"},
    {"prompt": None, "prompt_token_ids": (0,)},
    {"prompt": None, "messages": (USER,) * MAX_MESSAGES},
    {"prompt": None, "messages": (Message(Role.SYSTEM, ""), USER)},
    {"result_to": "s3://bucket"},
    {"result_to": "s3://bucket/a/b"},
    {"metadata": {str(i): "" for i in range(MAX_METADATA_PAIRS)}},
    {"tenant": "Acme_1-x"},
    {"cache_salt": "\u00fc" * MAX_CACHE_SALT},
    {"cache": "pin"},
    {"cache": "pin", "cache_ttl": 60},
    {"cache": "pin", "cache_ttl": 30 * 86_400},
    {"webhook": "https://example.com/".ljust(MAX_WEBHOOK_URL, "x")},
    {"webhook": "http://[::1]:8080/hook?a=b"},
    {"metadata": {"k" * MAX_METADATA_KEY: "v" * MAX_METADATA_VALUE}},
]


@pytest.mark.parametrize(("param", "fields"), BAD, ids=lambda v: repr(v)[:40])
def test_a_bad_value_names_its_field(param: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=param.split("_")[0]) as caught:
        Request(**{"model": "demo", "prompt": "a", **fields})
    assert caught.value.param == param


@pytest.mark.parametrize("fields", GOOD, ids=lambda v: repr(v)[:40])
def test_values_at_the_limits_are_taken(fields: dict[str, Any]) -> None:
    Request(**{"model": "demo", "prompt": "a", **fields})


def test_a_bad_model_name_has_the_code_of_an_unknown_model() -> None:
    with pytest.raises(InvalidRequest) as caught:
        Request(model="no such model", prompt="a")
    assert caught.value.code is ErrorCode.UNKNOWN_MODEL
    assert caught.value.info == ErrorInfo(ErrorCode.UNKNOWN_MODEL, str(caught.value), "model")


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Request(model="demo", prompt="a").model = "other"  # type: ignore[misc]


def test_requests_do_not_share_their_metadata() -> None:
    first, second = Request(model="demo", prompt="a"), Request(model="demo", prompt="a")
    first.metadata["order"] = "17"
    assert second.metadata == {}
