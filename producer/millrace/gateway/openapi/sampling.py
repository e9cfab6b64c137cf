"""The parameters of sampling as bodies have them: types and defaults are those of `Sampling`, limits stand here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from millrace_schemas import Sampling
from millrace_schemas.sampling import (
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_STOP_LENGTH,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
)

from .json_schema import Json, array, or_null

_INT32, _INT64 = 2**31 - 1, 2**63 - 1
_STOP: Json = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_LENGTH}
#: What a schema made from the struct does not know: its `__post_init__` checks these.
_LIMITS: Mapping[str, Json] = {
    "max_tokens": {"minimum": 1, "maximum": _INT64, "description": "Most tokens to generate."},
    "min_tokens": {
        "minimum": 0,
        "maximum": _INT64,
        "description": "No stop applies before this many tokens; no more than max_tokens.",
    },
    "temperature": {"minimum": 0, "maximum": 100, "description": "0 is greedy."},
    "top_k": {"minimum": 0, "maximum": _INT32, "description": "Keep the k most likely tokens; 0 keeps all."},
    "top_p": {
        "exclusiveMinimum": 0,
        "maximum": 1,
        "description": "Keep the smallest set of tokens whose probability reaches this.",
    },
    "min_p": {
        "minimum": 0,
        "maximum": 1,
        "description": "Drop tokens less likely than this fraction of the most likely one.",
    },
    "presence_penalty": {
        "minimum": -2,
        "maximum": 2,
        "description": "Taken off the logit of every token that was generated before.",
    },
    "frequency_penalty": {
        "minimum": -2,
        "maximum": 2,
        "description": "The same, times how often the token was generated.",
    },
    "repetition_penalty": {
        "exclusiveMinimum": 0,
        "maximum": 100,
        "description": "Divides positive logits, and multiplies others, of tokens in the prompt or generated before.",
    },
    "logit_bias": {
        "propertyNames": {"pattern": "^(0|[1-9][0-9]{0,9})$"},
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        "maxProperties": MAX_LOGIT_BIAS,
        "description": "Added to the logits of these token ids; -100 keeps a token out, and 100 leaves nothing else.",
    },
    "seed": {"minimum": 0, "maximum": _INT64, "description": "Without one, it is drawn when the job is made."},
    "stop": {"description": "Strings that end the answer; they are not part of it. One may stand without an array."},
    "stop_token_ids": {
        "items": {"type": "integer", "minimum": 0, "maximum": _INT32},
        "maxItems": MAX_STOP_TOKEN_IDS,
        "description": "Token ids that end the answer, besides the model's own.",
    },
    "ignore_eos": {"description": "Go on past the model's end-of-sequence ids."},
    "logprobs": {
        "minimum": 0,
        "maximum": MAX_LOGPROBS,
        "description": "Report each token's log-probability, and those of so many likeliest tokens.",
    },
}


def sampling_schema() -> Json:
    """`sampling` of a job: null stands for a default only where the struct says so."""
    fields = _fields()
    return {"type": "object", "properties": fields, "additionalProperties": False}


def openai_sampling(names: Iterable[str]) -> dict[str, Json]:
    """The same as properties of an OpenAI-shaped body, where any may be null."""
    fields = _fields()
    # vLLM's other way to say "all".
    fields["top_k"] |= {"minimum": -1, "description": "Keep the k most likely tokens; 0 or -1 keeps all."}
    return {name: or_null(fields[name]) for name in names}


def _fields() -> dict[str, Json]:
    _, components = msgspec.json.schema_components([Sampling])
    properties: dict[str, Json] = components["Sampling"]["properties"]
    found = {name: _merged(schema, _LIMITS[name]) for name, schema in properties.items()}
    found["stop"] = {
        "oneOf": [_STOP, array(_STOP, maxItems=MAX_STOP_STRINGS)],
        "default": [],
        "description": _LIMITS["stop"]["description"],
    }
    return found


def _merged(schema: Json, limits: Json) -> Json:
    options = schema.get("anyOf")
    if options is None:
        return {**schema, **limits}
    return {"type": [option["type"] for option in options], "default": schema["default"], **limits}
