"""From a completion's request to its job, and from the job to whoever waits: what chat and plain completions share.

The job belongs to the request alone unless that has an Idempotency-Key: then a repeat may ask for it, or it is one that
was made elsewhere. So only a job without key is cancelled when its client leaves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from millrace import AsyncJob, Finished, Result, Tokens, Usage
from millrace.async_job import raise_unless_completed
from millrace_schemas import MillraceError
from millrace_schemas.job import time_of_job

from .errors import JSONResponse
from .params import rename
from .sse import EventResponse, event
from .waiting import cancel_quietly, result_of, submit

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


@dataclass(frozen=True, slots=True)
class Question:
    """A checked body: `submit`'s arguments, and what only the answer needs."""

    fields: dict[str, Any]
    idempotency_key: str | None
    include_usage: bool = False
    #: Besides those of the shape.
    names: Mapping[str, str] | None = None


async def answer(request: Request, question: Question, shape: Shape) -> Response:
    """Submits, then answers whole or as a stream. Errors speak of the body's names."""
    names = {**shape.names, **(question.names or {})}
    if question.fields["stream"]:
        return await _stream(request, question, shape, names)
    job = await submit(request, question.fields, question.idempotency_key, names)
    headers = {"x-request-id": job.id}
    try:
        result = await result_of(request, job, keep=question.idempotency_key is not None)
    except MillraceError as e:
        error = rename(e, names)
        error.headers |= headers
        raise error from e
    return JSONResponse(_whole(job, result, shape), headers=headers)


async def _stream(request: Request, question: Question, shape: Shape, names: Mapping[str, str]) -> Response:
    slot = request.app.state.slots.take()
    try:
        job = await submit(request, question.fields, question.idempotency_key, names)
    except BaseException:
        slot.give_back()
        raise
    return EventResponse(
        _renamed(_chunks(job, question, shape), names),
        settings=request.app.state.settings,
        slot=slot,
        headers={"x-request-id": job.id},
        on_leave=None if question.idempotency_key else lambda: cancel_quietly(job),
    )


def usage_of(usage: Usage) -> dict[str, Any]:
    """Token counts as completions report them."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _whole(job: AsyncJob, result: Result, shape: Shape) -> dict[str, Any]:
    choices = [
        {"index": choice.index, **shape.whole(choice.text), "finish_reason": choice.finish_reason}
        for choice in result.choices
    ]
    head = _head(job, shape.object, shape, result.model)
    return {**head, "choices": choices, "usage": usage_of(result.usage)}


async def _chunks(job: AsyncJob, question: Question, shape: Shape) -> AsyncIterator[bytes]:
    """The job's events as OpenAI's chunks. Raises the job's error, before the first chunk when it never began."""
    head = _head(job, shape.chunk_object, shape, question.fields["model"])
    usage = {"usage": None} if question.include_usage else {}
    opening = shape.opening

    def chunk(choice: Choice, finish_reason: str | None = None) -> bytes:
        return event({**head, "choices": [{"index": 0, **choice, "finish_reason": finish_reason}], **usage})

    async for happened in job.events():
        result = raise_unless_completed(happened.result) if isinstance(happened, Finished) else None
        if opening is not None:
            yield chunk(opening)
            opening = None
        if isinstance(happened, Tokens) and happened.text:
            yield chunk(shape.piece(happened.text))
        if result is not None:
            yield chunk(shape.closing, result.choices[0].finish_reason if result.choices else "stop")
            if question.include_usage:
                yield event({**head, "choices": [], "usage": usage_of(result.usage)})
            yield event("[DONE]")


async def _renamed(chunks: AsyncIterator[bytes], names: Mapping[str, str]) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            yield chunk
    except MillraceError as e:
        raise rename(e, names) from e


def _head(job: AsyncJob, kind: str, shape: Shape, model: str) -> dict[str, Any]:
    return {"id": shape.id_prefix + job.id, "object": kind, "created": int(time_of_job(job.id)), "model": model}
