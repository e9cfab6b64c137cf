"""/v1/responses: one job each, waited for, streamed, or left to itself and asked after later (`background`).

A response is its job: the id names it, and a pair of its metadata says what else a Response repeats. So any gateway
before the same Redis can answer for it.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from millrace import AsyncClient, JobNotFound, MillraceError, ResultTimeout
from millrace.openai_api.params import rename
from millrace.openai_api.responses_body import NAMES, Asked, read_response
from millrace.openai_api.responses_object import Answer, job_of, no_response
from millrace_schemas import TERMINAL, JobState

from .body import idempotency_key, read_object
from .caller import client_of
from .errors import ApiError, JSONResponse, invalid
from .responses_events import Narration
from .sse import EventResponse
from .waiting import cancel_quietly, result_of, submit, unless_left

#: Seconds that a worker has to end a job before POST .../cancel answers with what there is by then.
_CANCEL_WAIT = 2.0


async def create(request: Request) -> Response:
    """The whole Response, its events, or, with `background`, what there is of it right away."""
    asked = read_response(await read_object(request))
    key = idempotency_key(request)
    if asked.fields["stream"]:
        return await _create_stream(request, asked, key)
    client = client_of(request)
    job = await submit(request, asked.fields, key, NAMES)
    headers = {"x-request-id": job.id}
    if asked.background:
        return JSONResponse(await _described(client, job.id), headers=headers)
    try:
        result = await result_of(request, job, keep=key is not None)
    except MillraceError as e:
        error = rename(e, NAMES)
        error.headers |= headers
        raise error from e
    return JSONResponse(Answer(job.id, await client.request(job.id)).ended(result), headers=headers)


async def retrieve(request: Request) -> Response:
    """The Response as it is now; with `stream=true` its events, those behind number `starting_after`."""
    client = client_of(request)
    id_ = request.path_params["id"]
    job_id, stream, after = job_of(id_), _wants_stream(request), _starting_after(request)
    try:
        if not stream:
            return JSONResponse(await _described(client, job_id))
        answer = Answer(job_id, await client.request(job_id))
    except JobNotFound:
        raise no_response(id_) from None
    if not answer.request.stream:
        raise invalid("this response was made without stream: true, so it has no events", param="stream")
    narration = Narration(answer, client.events(job_id), after)
    return EventResponse(
        narration.chunks(),
        settings=request.app.state.settings,
        slot=request.app.state.slots.take(),
        on_error=narration.error_event,
    )


async def cancel(request: Request) -> Response:
    """The Response after it, `in_progress` when its worker has been told but has not ended it yet."""
    client = client_of(request)
    id_ = request.path_params["id"]
    job_id = job_of(id_)
    try:
        answer = Answer(job_id, await client.request(job_id))
        if not answer.background:
            raise invalid("only a response with background: true can be cancelled", param="response_id")
        if await client.cancel(job_id) is JobState.IN_PROGRESS:
            try:
                return JSONResponse(answer.ended(await unless_left(request, client.wait(job_id, _CANCEL_WAIT))))
            except ResultTimeout:
                pass
        return JSONResponse(await _described(client, job_id))
    except JobNotFound:
        raise no_response(id_) from None


async def delete(request: Request) -> Response:
    """The queue forgets ended jobs by their time to live and in no other way."""
    raise ApiError(
        405,
        "responses cannot be deleted here: each goes when its time to live is over; "
        "POST /v1/responses/{id}/cancel ends one that runs in the background",
        code="method_not_allowed",
        headers={"allow": "GET, HEAD"},
    )


async def _create_stream(request: Request, asked: Asked, key: str | None) -> Response:
    client = client_of(request)
    slot = request.app.state.slots.take()
    try:
        job = await submit(request, asked.fields, key, NAMES)
        answer = Answer(job.id, await client.request(job.id))
        if not answer.request.stream:
            raise invalid("the first request with this Idempotency-Key had no stream: true", param="stream")
    except BaseException:
        slot.give_back()
        raise
    narration = Narration(answer, client.events(job.id))
    return EventResponse(
        narration.chunks(),
        settings=request.app.state.settings,
        slot=slot,
        headers={"x-request-id": job.id},
        on_leave=None if asked.background or key else lambda: cancel_quietly(job),
        on_error=narration.error_event,
    )


async def _described(client: AsyncClient, job_id: str) -> dict[str, Any]:
    """Raises JobNotFound."""
    answer, state = Answer(job_id, await client.request(job_id)), await client.state(job_id)
    if state in TERMINAL:
        return answer.ended(await client.wait(job_id, 0))
    return answer.waiting(state)


def _wants_stream(request: Request) -> bool:
    query = request.query_params
    for name, value in query.items():
        if name not in ("stream", "starting_after") and (name, value) != ("include_obfuscation", "false"):
            raise invalid(f"{name[:80]} is not supported here", param=name[:80], code="unsupported_parameter")
    stream = query.get("stream", "false")
    if stream not in ("true", "false"):
        raise invalid("stream must be true or false", param="stream")
    if "starting_after" in query and stream == "false":
        raise invalid("starting_after goes with stream=true alone", param="starting_after")
    return stream == "true"


def _starting_after(request: Request) -> int:
    text = request.query_params.get("starting_after")
    if text is None:
        return -1
    if not text.isascii() or not text.isdecimal() or len(text) > 15:
        raise invalid("starting_after must be the sequence_number of an event", param="starting_after")
    return int(text)


ROUTES = [
    Route("/v1/responses", create, methods=["POST"]),
    Route("/v1/responses/{id}", retrieve, methods=["GET"]),
    Route("/v1/responses/{id}", delete, methods=["DELETE"]),
    Route("/v1/responses/{id}/cancel", cancel, methods=["POST"]),
]
