"""/v1/chat/completions and /v1/completions, as the document describes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from millrace.openai_api import chat, completions, messages
from millrace.openai_api.params import SAMPLING
from millrace_schemas.job import MAX_MESSAGES
from millrace_schemas.sampling import MAX_LOGPROBS

from . import answers, fields
from .json_schema import (
    BOOLEAN,
    INTEGER,
    NULL,
    NUMBER,
    STRING,
    Json,
    array,
    body,
    closed,
    constant,
    described,
    one_of,
    or_null,
    ref,
    refused,
)
from .operation import Operation, events
from .sampling import openai_sampling

_SAMPLING = openai_sampling((*SAMPLING, "max_tokens"))
_SHARED = {**fields.COMMON, **_SAMPLING, "stream_options": fields.STREAM_OPTIONS}
_FINISH_REASON = constant("stop", "length")
_TOP: Json = {"type": "integer", "minimum": 0, "maximum": MAX_LOGPROBS}

_CHAT: Mapping[str, Json] = {
    "messages": array(
        ref("ChatMessage"), minItems=1, maxItems=MAX_MESSAGES, contains=fields.NOT_EMPTY,
        description="The conversation; one message, at least, is not empty.",
    ),
    **_SHARED,
    "logprobs": described(BOOLEAN, "Report the log-probability of each token, before penalties and temperature."),
    "top_logprobs": described(_TOP, "With `logprobs: true`, also those of so many likeliest tokens at each place."),
    "max_completion_tokens": described(_SAMPLING["max_tokens"], "Another name of `max_tokens`."),
}  # fmt: skip
_PROMPT = one_of(
    fields.TEXT,
    fields.TOKEN_IDS,
    array(one_of(fields.TEXT, fields.TOKEN_IDS), minItems=1, maxItems=1),
    description="Text or token ids, also as an array of one prompt; it is completed as it is.",
)
_COMPLETION: Mapping[str, Json] = {
    "prompt": _PROMPT,
    **_SHARED,
    "max_tokens": {**_SAMPLING["max_tokens"], "default": completions.MAX_TOKENS},
    "logprobs": {
        **_TOP,
        "maximum": completions.MAX_LOGPROBS,
        "description": "Report the log-probability of each token, and those of so many likeliest tokens at its place.",
    },
}
_USAGE = closed(
    {
        "prompt_tokens": INTEGER,
        "completion_tokens": INTEGER,
        "total_tokens": INTEGER,
        "prompt_tokens_details": closed(
            {"cached_tokens": described(INTEGER, "Of the prompt, out of the prefix cache."), **fields.CACHED_BY_TIER},
            optional=fields.CACHED_BY_TIER,
        ),
    }
)


def _asked(
    properties: Mapping[str, Json], known: frozenset[str], lacking: Mapping[str, Any], needed: str, *rules: Json
) -> Json:
    taken = {name: schema for name, schema in properties.items() if name in known}
    both = fields.STREAM_OPTIONS_NEED_STREAM
    rules = (*rules, fields.TTL_NEEDS_PIN)
    return body({**taken, **refused(lacking)}, required=("model", needed), anyOf=both, allOf=list(rules))


def _answered(kind: str, choice: Mapping[str, Json], logprobs: Json) -> Json:
    choices = array(closed({"index": INTEGER, **choice, "logprobs": logprobs, "finish_reason": _FINISH_REASON}))
    return closed({**_head(kind), "choices": choices, "usage": ref("CompletionUsage")})


def _chunk(kind: str, choice: Mapping[str, Json], logprobs: Json) -> Json:
    reason = {"enum": ["stop", "length", None]}
    choices = array(closed({"index": INTEGER, **choice, "logprobs": logprobs, "finish_reason": reason}))
    usage = {"anyOf": [ref("CompletionUsage"), NULL], "description": "With `include_usage`; in the last chunk only."}
    return closed(
        {**_head(kind), "choices": choices, "usage": usage}, optional=("usage",),
        description="The data of an event.",
    )  # fmt: skip


def _head(kind: str) -> dict[str, Json]:
    return {
        "id": described(STRING, "Ends with the id of the job."),
        "object": constant(kind),
        "created": described(INTEGER, "Unix seconds."),
        "model": STRING,
    }


_DELTA = closed({"role": constant("assistant"), "content": STRING}, optional=("role", "content"))
_TOP_NEEDS_LOGPROBS: list[Json] = [
    {"properties": {"top_logprobs": {"enum": [0, None]}}},
    {"properties": {"logprobs": {"const": True}}, "required": ["logprobs"]},
]
_TOKEN = closed(
    {
        "token": described(STRING, "Its text; parts of characters are replacement characters."),
        "logprob": described(NUMBER, "-9999 for what is impossible."),
        "bytes": or_null(described(array(INTEGER), "Of its text in UTF-8.")),
    }
)
_CHAT_LOGPROBS: Json = {"anyOf": [closed({"content": array(ref("TokenChances")), "refusal": NULL}), NULL]}
_TEXT_LOGPROBS: Json = {
    "anyOf": [
        closed(
            {
                "tokens": array(STRING),
                "token_logprobs": array(NUMBER),
                "top_logprobs": array({"type": "object", "additionalProperties": NUMBER}),
                "text_offset": array(INTEGER),
            }
        ),
        NULL,
    ]
}
_MESSAGE = closed({"role": constant("assistant"), "content": STRING, "refusal": NULL})

SCHEMAS: Mapping[str, Json] = {
    "ChatMessage": body(
        {
            "role": constant(*messages.ROLES),
            "content": fields.text_parts("text"),
            **refused(messages.REFUSED),
        },
        required=("role", "content"),
    ),
    "ChatCompletionRequest": _asked(_CHAT, chat.KNOWN, chat.REFUSED, "messages", {"anyOf": _TOP_NEEDS_LOGPROBS}),
    "CompletionRequest": _asked(_COMPLETION, completions.KNOWN, completions.REFUSED, "prompt"),
    "TokenChance": _TOKEN,
    "TokenChances": closed({**_TOKEN["properties"], "top_logprobs": array(ref("TokenChance"))}),
    "CompletionUsage": _USAGE,
    "ChatCompletion": _answered("chat.completion", {"message": _MESSAGE}, _CHAT_LOGPROBS),
    "ChatCompletionChunk": _chunk("chat.completion.chunk", {"delta": _DELTA}, _CHAT_LOGPROBS),
    "Completion": _answered("text_completion", {"text": STRING}, _TEXT_LOGPROBS),
    "CompletionChunk": _chunk("text_completion", {"text": STRING}, _TEXT_LOGPROBS),
}

_ERRORS = (*answers.OF_A_JOB, 409, 502, 504)
_DESCRIPTION = (
    "When the client leaves, the job is cancelled, unless the request has an Idempotency-Key. "
    "In a stream that has begun, an error is the last event."
)
_USAGE_EXAMPLE = {
    "prompt_tokens": 30, "completion_tokens": 7, "total_tokens": 37, "prompt_tokens_details": {"cached_tokens": 0},
}  # fmt: skip
_CHAT_QUESTION = {
    "model": "demo",
    "messages": [
        {"role": "system", "content": "Change the words by the rule."},
        {"role": "user", "content": "Uppercase every word: quiet river"},
    ],
    "max_tokens": 16,
    "temperature": 0,
}
_CHAT_ANSWER = {
    "id": "chatcmpl-demo-01m80b0nqp2f3fqpz0b4j6qfd0",
    "object": "chat.completion",
    "created": 1795307886,
    "model": "demo",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "QUIET RIVER", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": _USAGE_EXAMPLE,
}
_COMPLETION_QUESTION = {
    "model": "demo",
    "prompt": "Uppercase every word: quiet river\n",
    "max_tokens": 16,
    "temperature": 0,
}
_COMPLETION_ANSWER = {
    "id": "cmpl-demo-01m80b0nqp2f3fqpz0b4j6qfd0",
    "object": "text_completion",
    "created": 1795307886,
    "model": "demo",
    "choices": [{"index": 0, "text": "QUIET RIVER", "logprobs": None, "finish_reason": "stop"}],
    "usage": _USAGE_EXAMPLE,
}


def _answer(whole: str, chunk: str, example: Json) -> Json:
    found = answers.json_answer("The answer, whole or, with `stream`, as events.", ref(whole), example)
    found["content"] |= events(ref(chunk), ref("Error"), description="One event: a chunk of the answer.", done=True)
    return answers.submitted(found, x_request_id="RequestId")


OPERATIONS = (
    Operation(
        method="post",
        path="/v1/chat/completions",
        id="createChatCompletion",
        tag="Completions",
        summary="Answer a conversation",
        description=_DESCRIPTION,
        parameters=(fields.IDEMPOTENCY_KEY,),
        body={"schema": ref("ChatCompletionRequest"), "example": _CHAT_QUESTION},
        answers={200: _answer("ChatCompletion", "ChatCompletionChunk", _CHAT_ANSWER)},
        errors=_ERRORS,
    ),
    Operation(
        method="post",
        path="/v1/completions",
        id="createCompletion",
        tag="Completions",
        summary="Complete a prompt",
        description=_DESCRIPTION,
        parameters=(fields.IDEMPOTENCY_KEY,),
        body={"schema": ref("CompletionRequest"), "example": _COMPLETION_QUESTION},
        answers={200: _answer("Completion", "CompletionChunk", _COMPLETION_ANSWER)},
        errors=_ERRORS,
    ),
)
