"""The OpenAPI document: that it is one, that it has every route, and that its words are those of the gateway."""

from __future__ import annotations

from typing import Any

import httpx2
import msgspec
import openai.types
import pytest
from jsonschema import Draft202012Validator
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel

from fake_worker import FakeWorker
from millrace import Sampling
from millrace.gateway import GatewaySettings
from millrace.gateway.app import ROUTES
from millrace.gateway.openapi.document import build_document
from millrace.openai_api import chat, completions, messages, responses_body
from millrace.submission import FIELDS
from millrace_schemas import InvalidRequest

DOCUMENT = build_document(GatewaySettings())
SCHEMAS = DOCUMENT["components"]["schemas"]
OPERATIONS = {
    operation["operationId"]: operation for methods in DOCUMENT["paths"].values() for operation in methods.values()
}


def valid(name: str, value: object) -> bool:
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    return bool(Draft202012Validator(schema).is_valid(value))


def test_it_is_openapi() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_it_is_served_as_it_is_built(http: httpx2.Client) -> None:
    answer = http.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    # This gateway takes fewer jobs at once; that is its document's only difference.
    assert answer.json() == build_document(GatewaySettings(max_jobs=5))


def test_it_has_exactly_the_routes() -> None:
    documented = {(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    # HEAD comes with GET, which the document says once.
    routes = {(method, route.path.replace(":path}", "}")) for route in ROUTES for method in route.methods or ()}
    assert documented == {(method, path) for method, path in routes if method != "HEAD"}


def test_it_says_who_needs_a_key() -> None:
    strict = build_document(GatewaySettings(require_keys=True))["paths"]
    keys = [{"bearer": []}, {"basic": []}]
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            public = path in ("/healthz", "/readyz", "/openapi.json", "/docs", "/page/{name}")
            assert strict[path][method]["security"] == ([] if public else keys)
            # Here a request without one is taken as well.
            assert operation["security"] == ([] if public else [*keys, {}])
            assert ("401" in operation["responses"]) is not public


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("ChatCompletionRequest", chat.KNOWN | set(chat.REFUSED)),
        ("CompletionRequest", completions.KNOWN | set(completions.REFUSED)),
        ("ResponseRequest", responses_body.KNOWN | set(responses_body.REFUSED)),
        ("ChatMessage", messages.KNOWN | set(messages.REFUSED)),
        ("ResponseMessage", responses_body.ITEM),
        ("PromptJob", {*FIELDS, "idempotency_key"}),
        ("MessagesJob", {*FIELDS, "idempotency_key"}),
        ("TokensJob", {*FIELDS, "idempotency_key"}),
        ("Sampling", set(Sampling.__struct_fields__)),
    ],
)
def test_bodies_have_the_parameters_that_are_checked(name: str, taken: frozenset[str]) -> None:
    assert set(SCHEMAS[name]["properties"]) == taken


@pytest.mark.parametrize(
    "sampling",
    [
        {"max_tokens": 0}, {"max_tokens": 1}, {"max_tokens": None}, {"min_tokens": -1}, {"temperature": -0.1},
        {"temperature": 100}, {"temperature": 100.1}, {"temperature": None}, {"top_k": -1}, {"top_k": 2**31 - 1},
        {"top_k": 2**31}, {"top_p": 0}, {"top_p": 1}, {"top_p": 1.1}, {"min_p": 0}, {"min_p": 1}, {"min_p": 1.1},
        {"seed": -1}, {"seed": 2**63 - 1}, {"seed": 2**63}, {"seed": None}, {"stop": [""]}, {"stop": ["x" * 256]},
        {"stop": ["x" * 257]}, {"stop": ["x"] * 16}, {"stop": ["x"] * 17}, {"stop": None}, {"stop_token_ids": [-1]},
        {"stop_token_ids": [2**31 - 1]}, {"stop_token_ids": [2**31]}, {"stop_token_ids": [1] * 128},
        {"stop_token_ids": [1] * 129}, {"ignore_eos": True}, {"ignore_eos": 1}, {"n": 1},
    ],
)  # fmt: skip
def test_limits_of_sampling_are_those_of_the_struct(sampling: dict[str, Any]) -> None:
    try:
        msgspec.convert(sampling, Sampling)
    except (msgspec.ValidationError, InvalidRequest):
        taken = False
    else:
        taken = True
    assert valid("Sampling", sampling) is taken


@pytest.mark.parametrize(
    ("operation", "status", "kind"),
    [
        ("createChatCompletion", "200", ChatCompletion),
        ("createCompletion", "200", openai.types.Completion),
        ("createResponse", "200", Response),
        ("retrieveResponse", "200", Response),
        ("readModel", "200", openai.types.Model),
    ],
)
def test_examples_of_answers_are_what_openai_s_client_reads(operation: str, status: str, kind: type[BaseModel]) -> None:
    example = OPERATIONS[operation]["responses"][status]["content"]["application/json"]["example"]
    read = kind.model_validate(example, strict=True).model_dump(exclude_unset=True, mode="json")
    assert {name: read[name] for name in example} == example


def test_examples_are_valid() -> None:
    for operation in OPERATIONS.values():
        contents = [operation.get("requestBody", {}), *operation["responses"].values()]
        for content in (it["content"].get("application/json", {}) for it in contents if "content" in it):
            if "example" in content:
                schema = {**content["schema"], "components": DOCUMENT["components"]}
                Draft202012Validator(schema).validate(content["example"])


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "hi"}], "n": True}, "n is not supported"),
        ("chat/completions", {"messages": [{"role": "user", "content": "hi"}], "logprobs": 0}, "logprobs must be true"),
        ("completions", {"prompt": "hi", "user": 5}, "user must be a string"),
        ("responses", {"input": "hi", "stream_options": {"include_obfuscation": 0}}, "stream_options is not"),
        ("jobs", {"prompt": "hi", "model": ""}, "model names have"),
        ("jobs", {"prompt": "hi", "model": {}}, "model: expected str"),
    ],
)
def test_what_only_looks_like_nothing_is_refused(
    http: httpx2.Client, path: str, body: dict[str, Any], answer: str
) -> None:
    refused = http.post(f"/v1/{path}", json={"model": "demo", **body})
    assert refused.status_code in (400, 404)
    assert refused.json()["error"]["message"].startswith(answer)


def test_a_number_may_be_written_with_a_point(http: httpx2.Client, worker: FakeWorker) -> None:
    body = b'{"model": "demo", "prompt": [1.0, 2e0], "max_tokens": 16.0, "n": 1.0, "temperature": 0.5}'
    answer = http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.json()["choices"][0]["text"] == "1 2"
    far = http.post("/v1/jobs", content=b'{"deadline": 1e999}', headers={"content-type": "application/json"})
    assert far.json()["error"]["code"] == "invalid_json"


def test_a_wrong_method_is_told_the_methods_of_all_routes_of_its_url(http: httpx2.Client) -> None:
    assert http.post("/v1/jobs/x").headers["allow"] == "DELETE, GET, HEAD"
    assert http.get("/v1/jobs").headers["allow"] == "POST"


@pytest.mark.parametrize("wait", ["1_0", "٣", " 1", "nan", "inf", "61", "-1"])
def test_wait_is_a_plain_number(http: httpx2.Client, wait: str) -> None:
    job = http.post("/v1/jobs", json={"prompt": "hi"}).json()["id"]
    assert http.get(f"/v1/jobs/{job}", params={"wait": wait}).json()["error"]["param"] == "wait"


def test_a_wrong_last_event_id_is_named_as_the_header_is(http: httpx2.Client) -> None:
    job = http.post("/v1/jobs", json={"prompt": "hi", "stream": True}).json()["id"]
    answer = http.get(f"/v1/jobs/{job}/events", headers={"last-event-id": "seven"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Last-Event-ID")
