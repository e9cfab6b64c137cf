"""/v1/completions: a prompt is completed as it is."""

from __future__ import annotations

from typing import Any

from .errors import invalid
from .logprobs import completion_logprobs
from .params import COMMON, LACKING, check_names, common_fields, include_usage
from .shapes import Question, Shape

#: OpenAI's default here; chat has none.
MAX_TOKENS = 16
#: OpenAI's limit here.
MAX_LOGPROBS = 5
KNOWN = COMMON | {"prompt", "logprobs"}
REFUSED: dict[str, tuple[Any, ...]] = {
    **LACKING,
    "best_of": (1,),
    "echo": (False,),
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
    logprobs=completion_logprobs,
)


def read_completion(body: dict[str, Any], key: str | None = None) -> Question:
    """A body of completions. Raises ApiError naming the parameter."""
    given = check_names(body, KNOWN, REFUSED)
    given.setdefault("max_tokens", MAX_TOKENS)
    fields = common_fields(given)
    if "logprobs" in given:
        fields["sampling"]["logprobs"] = _logprobs(given["logprobs"])
    return Question({**fields, **_prompt(given.get("prompt"))}, key, include_usage(given))


def _logprobs(top: Any) -> Any:
    if isinstance(top, int | float) and not 0 <= top <= MAX_LOGPROBS:
        raise invalid(f"logprobs must lie in [0, {MAX_LOGPROBS}], not {top}", param="logprobs")
    return top


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
