"""Properties that several bodies have, each described once."""

from __future__ import annotations

from millrace_schemas.job import (
    MAX_CACHE_SALT,
    MAX_IDEMPOTENCY_KEY,
    MAX_METADATA_KEY,
    MAX_METADATA_PAIRS,
    MAX_METADATA_VALUE,
    MAX_MODEL_NAME,
)
from millrace_schemas.pin import DEFAULT_CACHE_TTL, MAX_CACHE_TTL, MIN_CACHE_TTL
from millrace_schemas.webhook import MAX_WEBHOOK_URL

from .json_schema import BOOLEAN, INTEGER, STRING, Json, described
from .operation import parameter

_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
#: The tail of every id: ids sort by time.
_TAIL = "[0-9a-hjkmnp-tv-z]{26}"

MODEL: Json = {
    "type": "string",
    "pattern": "^[A-Za-z0-9._/-]+$",
    "minLength": 1,
    "maxLength": MAX_MODEL_NAME,
    "description": "A registered model; `GET /v1/models` lists them.",
}
#: Beside `cached_tokens`, where it is not 0; not OpenAI's.
CACHED_BY_TIER: dict[str, Json] = {
    "cached_by_tier": {
        "type": "object",
        "additionalProperties": INTEGER,
        "description": "Those by the tier of the cache that had them: gpu, cpu, disk, s3. Left out without any.",
    }
}
METADATA: Json = {
    "type": "object",
    "propertyNames": {"minLength": 1, "maxLength": MAX_METADATA_KEY},
    "additionalProperties": {"type": "string", "maxLength": MAX_METADATA_VALUE},
    "maxProperties": MAX_METADATA_PAIRS,
    "description": "Kept with the job and repeated in its result.",
}
WEBHOOK: Json = {
    "type": "string",
    "pattern": rf'^https?://[A-Za-z0-9._-]+(:{_PORT})?([/?][!-"$-~]*)?$',
    "maxLength": MAX_WEBHOOK_URL,
    "description": "A URL, https as a rule, that a gateway calls when the job has ended.",
}
CACHE_SALT: Json = {
    "type": "string",
    "maxLength": MAX_CACHE_SALT,
    "description": "The prefix cache shares nothing between jobs whose salt, or tenant, differs.",
}
CACHE: Json = {
    "enum": ["auto", "pin"],
    "default": "auto",
    "description": "With `pin`, workers keep what the system's messages make of the prompt, or without any the whole "
    "prompt, in their caches.",
}
CACHE_TTL: Json = {
    "type": "number",
    "minimum": MIN_CACHE_TTL,
    "maximum": MAX_CACHE_TTL,
    "default": DEFAULT_CACHE_TTL,
    "description": 'Seconds that the pin lasts after its last use; goes with `cache: "pin"` alone.',
}
TTL_NEEDS_PIN: Json = {
    "anyOf": [
        {"properties": {"cache_ttl": {"type": "null"}}},
        {"properties": {"cache": {"const": "pin"}}, "required": ["cache"]},
    ]
}
TOKEN_IDS: Json = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
    "minItems": 1,
    "description": "Token ids of the model.",
}
STREAM: Json = described(BOOLEAN, "Answer with server-sent events.")
CALLER: Json = described(STRING, "Says something about the caller and nothing about the answer; it is not used.")
TEXT: Json = {"type": "string", "minLength": 1}

#: In bodies of OpenAI's shape, by name. A body has those of them that its endpoint knows.
COMMON: dict[str, Json] = {
    "model": MODEL,
    "stream": STREAM,
    "metadata": METADATA,
    "webhook": WEBHOOK,
    "cache_salt": CACHE_SALT,
    "cache": CACHE,
    "cache_ttl": CACHE_TTL,
    "user": CALLER,
    "safety_identifier": CALLER,
    "prompt_cache_key": CALLER,
}

STREAM_OPTIONS: Json = {
    "type": "object",
    "properties": {
        "include_usage": {"type": ["boolean", "null"], "description": "End with an event of token counts."},
        "include_obfuscation": {"enum": [False, None]},
    },
    "additionalProperties": False,
    "description": "Goes with `stream: true` alone.",
}
#: Of a body that has both.
STREAM_OPTIONS_NEED_STREAM: list[Json] = [
    {"properties": {"stream_options": {"type": "null"}}},
    {"properties": {"stream": {"const": True}}, "required": ["stream"]},
]

IDEMPOTENCY_KEY = parameter(
    "Idempotency-Key",
    "header",
    "Requests that share it within a day make one job and get its answer; the job then outlives its connection.",
    {"type": "string", "minLength": 1, "maxLength": MAX_IDEMPOTENCY_KEY},
)
JOB_ID = parameter("id", "path", "A job's id.", {"type": "string", "pattern": f"^[A-Za-z0-9._-]+-{_TAIL}$"})
RESPONSE_ID = parameter(
    "id", "path", "A response's id: `resp_` and that of its job.",
    {"type": "string", "pattern": f"^resp_[A-Za-z0-9._-]+-{_TAIL}$"},
)  # fmt: skip

#: An object of whose texts one, at least, is not empty.
NOT_EMPTY: Json = {
    "properties": {
        "content": {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "contains": {"properties": {"text": {"minLength": 1}}, "required": ["text"]}},
            ]
        }
    },
    "required": ["content"],
}


def text_parts(*kinds: str) -> Json:
    """Content as a string, or as parts of these types. What else a part has is of no use here, and does no harm."""
    part: Json = {
        "type": "object",
        "properties": {"type": {"enum": list(kinds)}, "text": STRING},
        "required": ["type", "text"],
    }
    return {"anyOf": [STRING, {"type": "array", "items": part, "description": "Joined."}]}
