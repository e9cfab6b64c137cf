"""/v1/chat/completions."""

from __future__ import annotations

from typing import Any

from .errors import invalid
from .messages import read_messages
from .params import COMMON, LACKING, check_names, common_fields, include_usage
from .shapes import Question, Shape

KNOWN = COMMON | {"messages", "max_completion_tokens", "safety_identifier", "prompt_cache_key"}
REFUSED: dict[str, tuple[Any, ...]] = {
    **LACKING,
    "logprobs": (False,),
    "top_logprobs": (0,),
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
    names={"prompt": "messages"},
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
    fields["messages"] = read_messages(given.get("messages"))
    return Question(fields, key, include_usage(given), names)
