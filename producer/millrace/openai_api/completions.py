"""/v1/completions: a prompt is completed as it is."""

from __future__ import annotations

from typing import Any

from .errors import invalid
from .params import COMMON, LACKING, check_names, common_fields, include_usage
from .shapes import Question, Shape

#: OpenAI's default here; chat has none.
MAX_TOKENS = 16
KNOWN = COMMON | {"prompt"}
REFUSED: dict[str, tuple[Any, ...]] = {
    **LACKING,
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (),
    "suffix": ("",),
}

SHAPE = Shape(
    object="text_completion",
    chunk_object="text_completion",
    id_prefix="cmpl-",
    whole=lambda text: {"text": text, "logprobs": None},
    piece=lambda text: {"text": text, "logprobs": None},
    opening=None,
    closing={"text": "", "logprobs": None},
    names={"prompt_token_ids": "prompt"},
)


def read_completion(body: dict[str, Any], key: str | None = None) -> Question:
    """A body of completions. Raises ApiError naming the parameter."""
    given = check_names(body, KNOWN, REFUSED)
    given.setdefault("max_tokens", MAX_TOKENS)
    return Question({**common_fields(given), **_prompt(given.get("prompt"))}, key, include_usage(given))


def _prompt(prompt: object) -> dict[str, Any]:
    """One prompt: text, token ids, or an array of one of these."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            raise invalid("one prompt a request; POST a list to /v1/jobs for many", param="prompt")
        prompt = prompt[0]
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if isinstance(prompt, list):
        return {"prompt_token_ids": prompt}
    raise invalid("prompt must be a string or an array of token ids", param="prompt")
