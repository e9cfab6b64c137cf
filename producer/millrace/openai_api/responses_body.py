"""The body of POST /v1/responses: text in, text out, and every other parameter refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from millrace_schemas.job import MAX_METADATA_PAIRS

from .errors import ApiError, invalid
from .messages import read_text
from .params import COMMON, LACKING, check_names, common_fields

#: The pair of a job's metadata that holds what a Response repeats and a job has no field for; values below.
MARK = "millrace.response"
BACKGROUND, INSTRUCTIONS = "background", "instructions"
#: Among them: a webhook is to speak of a response. Others need no such mark.
RESPONSE = "response"
#: Fields of a job by the names that bodies have for them.
NAMES: Mapping[str, str] = {
    "prompt": "input",
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "logprobs": "top_logprobs",
}
#: What `include` may hold.
LOGPROBS = "message.output_text.logprobs"

KNOWN = (COMMON - {"max_tokens", "stream_options"}) | {
    "input", "instructions", "max_output_tokens", "background", "store", "text", "reasoning", "safety_identifier",
    "prompt_cache_key", "webhook", "include", "top_logprobs",
}  # fmt: skip
REFUSED: dict[str, tuple[Any, ...]] = {
    **LACKING,
    "access_programs": (),
    "background_options": (),
    "context_management": ([],),
    "conversation": (),
    "image": (),
    "max_tool_calls": (),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "previous_response_id": (),
    "prompt": (),
    "prompt_cache_options": ({},),
    "prompt_cache_retention": (),
    "service_tier": ("auto", "default"),
    "stream_options": ({}, {"include_obfuscation": False}),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncation": ("disabled",),
}
REFUSED_TEXT: dict[str, tuple[Any, ...]] = {"format": ({"type": "text"},), "verbosity": ("medium",)}
REFUSED_REASONING: dict[str, tuple[Any, ...]] = {"effort": ("none",), "summary": (), "generate_summary": ()}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
#: Types of parts: what was asked, and what an earlier response answered.
PARTS = ("input_text", "output_text")
ITEM = frozenset({"type", "role", "content", "id", "status", "phase"})


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked body: `submit`'s arguments, and whether the answer is to be waited for."""

    fields: dict[str, Any]
    background: bool


def read_response(body: Mapping[str, Any]) -> Asked:
    """Raises ApiError naming the parameter."""
    given = check_names(body, KNOWN, REFUSED)
    _check_nested(given, "text", REFUSED_TEXT)
    _check_nested(given, "reasoning", REFUSED_REASONING)
    background = _flag(given, "background")
    # Results are kept for their time to live in any case; whoever says false loses nothing.
    _flag(given, "store")
    if "max_output_tokens" in given:
        given["max_tokens"] = given["max_output_tokens"]
    fields = common_fields(given)
    _read_logprobs(given, fields["sampling"])
    messages = _messages(given.get("input"))
    marks = [BACKGROUND] if background else []
    if "instructions" in given:
        if not isinstance(given["instructions"], str):
            raise invalid("instructions must be a string", param="instructions")
        messages.insert(0, {"role": "system", "content": given["instructions"]})
        marks.append(INSTRUCTIONS)
    if "webhook" in given:
        fields["webhook"] = given["webhook"]
        marks.append(RESPONSE)
    return Asked({**fields, "messages": messages, "metadata": _metadata(fields["metadata"], marks)}, background)


def _read_logprobs(given: Mapping[str, Any], sampling: dict[str, Any]) -> None:
    include, top = given.get("include", []), given.get("top_logprobs", 0)
    if not isinstance(include, list):
        raise invalid("include must be an array", param="include")
    if any(name != LOGPROBS for name in include):
        raise invalid(
            f"include is not supported here but for {LOGPROBS!r}", param="include", code="unsupported_parameter"
        )
    if include:
        sampling["logprobs"] = top
    elif top != 0 or isinstance(top, bool):
        raise invalid(f"top_logprobs goes with include: [{LOGPROBS!r}] alone", param="top_logprobs")


def _messages(given: object) -> list[dict[str, str]]:
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise invalid("input must be a string or an array of messages, not empty", param="input")
    messages = [_message(item, f"input[{i}]") for i, item in enumerate(given)]
    if not any(message["content"] for message in messages):
        raise invalid("input has no text", param="input")
    return messages


def _message(item: object, where: str) -> dict[str, str]:
    if not isinstance(item, dict):
        raise invalid(f"{where} must be a message: an object with role and content", param=where)
    if item.get("type", "message") != "message":
        raise invalid(
            f"{where}.type: only items of type 'message' are supported", param=f"{where}.type",
            code="unsupported_parameter",
        )  # fmt: skip
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f"{where}.role must be one of {', '.join(ROLES)}", param=f"{where}.role")
    given = _named(where, item, ITEM, {})
    return {"role": ROLES[role], "content": read_text(given.get("content"), f"{where}.content", PARTS)}


def _metadata(metadata: object, marks: list[str]) -> Any:
    """`submit` checks the caller's own pairs."""
    if not isinstance(metadata, dict | None):
        return metadata
    if metadata and MARK in metadata:
        raise invalid(f"metadata: the key {MARK} is the gateway's own", param="metadata")
    if metadata and marks and len(metadata) >= MAX_METADATA_PAIRS:
        raise invalid(
            f"metadata takes at most {MAX_METADATA_PAIRS - 1} pairs with {' or '.join(marks)}, not {len(metadata)}",
            param="metadata",
        )
    return {**(metadata or {}), MARK: " ".join(marks)} if marks else metadata


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise invalid(f"{name} must be true or false", param=name)
    return value


def _check_nested(given: Mapping[str, Any], name: str, lacking: Mapping[str, tuple[Any, ...]]) -> None:
    value = given.get(name, {})
    if not isinstance(value, dict):
        raise invalid(f"{name} must be an object", param=name)
    _named(name, value, frozenset(), lacking)


def _named(
    where: str, given: Mapping[str, Any], known: frozenset[str], lacking: Mapping[str, tuple[Any, ...]]
) -> dict[str, Any]:
    try:
        return check_names(given, known, lacking)
    except ApiError as e:
        raise invalid(f"{where}: {e.message}", param=f"{where}.{e.param}", code=e.code or "invalid_request") from None
