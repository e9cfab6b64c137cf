"""/v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import invalid
from .logprobs import chat_logprobs
from .messages import read_messages
from .params import COMMON, LACKING, check_names, common_fields, include_usage
from .shapes import Question, Shape

KNOWN = COMMON | {
    "messages", "max_completion_tokens", "logprobs", "top_logprobs", "safety_identifier", "prompt_cache_key",
}  # fmt: skip
REFUSED: dict[str, tuple[Any, ...]] = {
    **LACKING,
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "prompt_cache_retention": (),
}

SHAPE = Shape(
    object="chat.completion",
    chunk_object="chat.completion.chunk",
    id_prefix="chatcmpl-",
    whole=lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}, "logprobs": None},
    piece=lambda text: {"delta": {"content": text}, "logprobs": None},
    opening={"delta": {"role": "assistant", "content": ""}, "logprobs": None},
    closing={"delta": {}, "logprobs": None},
    names={"prompt": "messages", "logprobs": "top_logprobs"},
    logprobs=chat_logprobs,
)


def read_chat(body: dict[str, Any], key: str | None = None) -> Question:
    """A body of chat completions. Raises ApiError naming the parameter."""
    given = check_names(body, KNOWN, REFUSED)
    names = {}
    if "max_completion_tokens" in given:
        most = given.pop("max_completion_tokens")
        if given.setdefault("max_tokens", most) != most:
            raise invalid("max_tokens and max_completion_tokens differ; give one", param="max_tokens")
        names["max_tokens"] = "max_completion_tokens"
    fields = common_fields(given)
    _read_logprobs(given, fields["sampling"])
    fields["messages"] = read_messages(given.get("messages"))
    return Question(fields, key, include_usage(given), names)


def _read_logprobs(given: Mapping[str, Any], sampling: dict[str, Any]) -> None:
    wanted, top = given.get("logprobs", False), given.get("top_logprobs", 0)
    if not isinstance(wanted, bool):
        raise invalid("logprobs must be true or false", param="logprobs")
    if wanted:
        sampling["logprobs"] = top
    elif top != 0 or isinstance(top, bool):
        raise invalid("top_logprobs goes with logprobs: true alone", param="top_logprobs")
