"""/v1/jobs: the queue itself. A job made here lives on whatever becomes of its client's connection."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from millrace import EventStream
from millrace.event_stream import EVENT_ID, START
from millrace.submission import FIELDS
from millrace_schemas import TERMINAL, JobRecord, JobState, Result, ResultTimeout

from .body import idempotency_key, read_json
from .caller import client_of
from .errors import JSONResponse, invalid
from .settings import GatewaySettings
from .sse import EventResponse, event
from .waiting import unless_left

#: A number as JSON and people write it; Python's float() takes more. Digits can be matched in one way only: text of any
#: length is refused at once.
_SECONDS = re.compile(r"-?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_NAMES = frozenset({*FIELDS, "idempotency_key"})


async def create(request: Request) -> Response:
    """202 with the id of one job, or those of a list, all of which are checked before the first is queued."""
    client = client_of(request)
    settings: GatewaySettings = request.app.state.settings
    key, body = idempotency_key(request), await read_json(request)
    if isinstance(body, dict):
        job = await client.submit(**_arguments(body, key, ""))
        return JSONResponse(_job(job.id), 202, {"location": f"/v1/jobs/{job.id}"})
    if not isinstance(body, list) or not body:
        raise invalid("the body must be a job, an object of submit's arguments, or an array of jobs, not empty")
    if len(body) > settings.max_jobs:
        raise invalid(f"at most {settings.max_jobs:,} jobs in a request, not {len(body):,}")
    # Each job needs a key of its own; a digest, so that a long key with a number still fits.
    digest = None if key is None else hashlib.sha256(key.encode()).hexdigest()
    jobs = await client.submit_many(
        _arguments(one, digest and f"{digest}:{i}", f"requests[{i}]: ") for i, one in enumerate(body)
    )
    return JSONResponse({"object": "list", "data": [_job(job.id) for job in jobs]}, 202)


async def read(request: Request) -> Response:
    """State and, once there is one, result; with `wait`, as soon as there is one or after so many seconds."""
    client = client_of(request)
    job_id, wait = request.path_params["id"], _wait(request)
    result: Result | None = None
    record = await client.record(job_id)
    if wait or record.state in TERMINAL:
        try:
            result = await unless_left(request, client.wait(job_id, 0 if record.state in TERMINAL else wait))
        except ResultTimeout:
            pass
        else:
            record = await client.record(job_id)
    return JSONResponse(_described(record, result))


async def cancel(request: Request) -> Response:
    """The state after it: `cancelled`, `in_progress` when the worker was told, or the end that the job had."""
    client = client_of(request)
    job_id = request.path_params["id"]
    state = await client.cancel(job_id)
    return JSONResponse({**_job(job_id), "state": state, "cancel_requested": state is JobState.IN_PROGRESS})


async def events(request: Request) -> Response:
    """What happens to a job with `stream`, from its begin or behind `Last-Event-ID`."""
    after = request.headers.get("last-event-id", START)
    if not EVENT_ID.fullmatch(after):
        raise invalid(f"Last-Event-ID is the id of an event, not {after[:40]!r}", param="Last-Event-ID")
    stream = client_of(request).events(request.path_params["id"], after)
    slot = request.app.state.slots.take()
    return EventResponse(_events(stream), settings=request.app.state.settings, slot=slot)


async def _events(stream: EventStream) -> AsyncIterator[bytes]:
    async for happened in stream:
        data = msgspec.to_builtins(happened)
        yield event(data, name=data["type"], id_=stream.last_id)


def _arguments(job: object, key: str | None, where: str) -> dict[str, Any]:
    if not isinstance(job, dict):
        raise invalid(f"{where}a job must be an object of submit's arguments")
    for name in job:
        if name not in _NAMES:
            raise invalid(
                f"{where}no argument is called {name[:80]!r}; there are {', '.join(FIELDS)} and idempotency_key",
                param=name[:80],
                code="unknown_parameter",
            )
    if job.get("idempotency_key") is not None or key is None:
        return job
    return {**job, "idempotency_key": key}


def _wait(request: Request) -> float:
    settings: GatewaySettings = request.app.state.settings
    text = request.query_params.get("wait", "0")
    seconds = float(text) if _SECONDS.fullmatch(text) else math.nan
    if not 0 <= seconds <= settings.max_wait:
        raise invalid(f"wait is 0 to {settings.max_wait:g} seconds, not {text[:40]!r}", param="wait")
    return seconds


def _job(job_id: str) -> dict[str, Any]:
    return {"id": job_id, "object": "job"}


def _described(record: JobRecord, result: Result | None) -> dict[str, Any]:
    return {**msgspec.structs.asdict(record), "object": "job", "result": result}


ROUTES = [
    Route("/v1/jobs", create, methods=["POST"]),
    Route("/v1/jobs/{id}", read, methods=["GET"]),
    Route("/v1/jobs/{id}", cancel, methods=["DELETE"]),
    Route("/v1/jobs/{id}/events", events, methods=["GET"]),
]
