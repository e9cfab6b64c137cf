"""What chat and plain completions share: how a body is kept once it is read, and how an answer is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from millrace_schemas import Result, TokenLogprob, Usage
from millrace_schemas.job import time_of_job

from .cached import cached_of
from .logprobs import TextPlace

Choice = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """How one endpoint writes an answer. Choices have no index and finish_reason yet."""

    object: str
    chunk_object: str
    id_prefix: str
    #: The choice of a whole answer, and that of a piece of one, by its text.
    whole: Callable[[str], Choice]
    piece: Callable[[str], Choice]
    #: The first piece, which has no text yet; None: there is none.
    opening: Choice | None
    #: The last one, with finish_reason.
    closing: Choice
    #: Fields of a job by the names that bodies have for them.
    names: Mapping[str, str]
    #: Those of a choice, of a whole answer's tokens or of a piece's.
    logprobs: Callable[[Sequence[TokenLogprob], TextPlace], Any]

    def with_logprobs(self, choice: Choice, tokens: Sequence[TokenLogprob] | None, place: TextPlace) -> Choice:
        """`choice`, and the tokens' log-probabilities if there are any."""
        return choice if tokens is None else {**choice, "logprobs": self.logprobs(tokens, place)}


@dataclass(frozen=True, slots=True)
class Question:
    """A checked body: `submit`'s arguments, and what only the answer needs."""

    fields: dict[str, Any]
    idempotency_key: str | None
    include_usage: bool = False
    #: Besides those of the shape.
    names: Mapping[str, str] | None = None


def usage_of(usage: Usage) -> dict[str, Any]:
    """Token counts as completions report them."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": cached_of(usage),
    }


def whole_answer(job_id: str, result: Result, shape: Shape) -> dict[str, Any]:
    """A completed job as the whole answer to its request."""
    choices = [
        {
            "index": choice.index,
            **shape.with_logprobs(shape.whole(choice.text), choice.logprobs, TextPlace()),
            "finish_reason": choice.finish_reason,
        }
        for choice in result.choices
    ]
    head = head_of(job_id, shape.object, shape, result.model)
    return {**head, "choices": choices, "usage": usage_of(result.usage)}


def head_of(job_id: str, kind: str, shape: Shape, model: str) -> dict[str, Any]:
    """What an answer, and every chunk of one, starts with."""
    return {"id": shape.id_prefix + job_id, "object": kind, "created": int(time_of_job(job_id)), "model": model}
