"""From a completion's request to its job, and from the job to whoever waits: what chat and plain completions share.

The job belongs to the request alone unless that has an Idempotency-Key: then a repeat may ask for it, or it is one that
was made elsewhere. So only a job without key is cancelled when its client leaves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from starlette.requests import Request
from starlette.responses import Response

from millrace import AsyncJob, Finished, Tokens
from millrace.async_job import raise_unless_completed
from millrace.openai_api.logprobs import TextPlace
from millrace.openai_api.params import rename
from millrace.openai_api.shapes import Choice, Question, Shape, head_of, usage_of, whole_answer
from millrace_schemas import MillraceError

from .errors import JSONResponse
from .sse import EventResponse, event
from .waiting import cancel_quietly, result_of, submit


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
    return JSONResponse(whole_answer(job.id, result, shape), headers=headers)


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


async def _chunks(job: AsyncJob, question: Question, shape: Shape) -> AsyncIterator[bytes]:
    """The job's events as OpenAI's chunks. Raises the job's error, before the first chunk when it never began."""
    head = head_of(job.id, shape.chunk_object, shape, question.fields["model"])
    usage = {"usage": None} if question.include_usage else {}
    opening, place = shape.opening, TextPlace()

    def chunk(choice: Choice, finish_reason: str | None = None) -> bytes:
        return event({**head, "choices": [{"index": 0, **choice, "finish_reason": finish_reason}], **usage})

    async for happened in job.events():
        result = raise_unless_completed(happened.result) if isinstance(happened, Finished) else None
        if opening is not None:
            yield chunk(opening)
            opening = None
        if isinstance(happened, Tokens) and (happened.text or happened.logprobs):
            yield chunk(shape.with_logprobs(shape.piece(happened.text), happened.logprobs, place))
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
