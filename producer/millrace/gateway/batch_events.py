"""GET /v1/batches/{id}/events: how far a batch has come, each time that changes, until it has ended."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from millrace.bulk.described import describe
from millrace.bulk.glance import Glance, Paces
from millrace.bulk.store import View
from millrace_schemas import QueueUnavailable
from millrace_schemas.batch import BATCH_TERMINAL

from .batch_views import view_of
from .files import connection_of
from .sse import EventResponse, event

#: Seconds between two looks: there are no more events. Where nothing changes they become fewer.
_SHORTEST, _LONGEST = 0.5, 2.0
PROGRESS = "batch.progress"
#: By what stands at the end of a stream.
ENDS = tuple(sorted(f"batch.{status}" for status in BATCH_TERMINAL))


async def events(request: Request) -> Response:
    """Begins with the batch as it is, unless `Last-Event-ID` says that the client has seen just that.

    With the id of its end in it there is nothing to follow any more: 204, after which a browser asks no more.
    """
    batch_id, known = request.path_params["id"], request.headers.get("last-event-id", "")
    paces: Paces = request.app.state.history.paces
    view, glance = await _look(request, paces, batch_id)
    if glance.is_over and _id_of(glance) == known:
        return Response(status_code=204)
    slot = request.app.state.slots.take()
    return EventResponse(_events(request, paces, view, glance, known), settings=request.app.state.settings, slot=slot)


async def _events(request: Request, paces: Paces, view: View, glance: Glance, known: str) -> AsyncIterator[bytes]:
    pause = _SHORTEST
    while True:
        now = _id_of(glance)
        if now != known:
            known, pause = now, _SHORTEST
            name = f"batch.{glance.status}" if glance.is_over else PROGRESS
            yield event({**describe(view), "progress": glance}, name=name, id_=now)
        if glance.is_over:
            return
        await asyncio.sleep(pause)
        pause = min(pause * 1.25, _LONGEST)
        try:
            view, glance = await _look(request, paces, glance.id)
        except QueueUnavailable:
            # The client would come back to an error, and a browser would then stay away. The batch is where it was.
            continue


async def _look(request: Request, paces: Paces, batch_id: str) -> tuple[View, Glance]:
    """Raises ApiError, QueueUnavailable."""
    view = await view_of(request, batch_id)
    return view, paces.glance(view, await connection_of(request).now())


def _id_of(glance: Glance) -> str:
    """The same for the same state, on all gateways."""
    digest: Any = hashlib.blake2b(repr(glance.state).encode(), digest_size=8)
    return str(digest.hexdigest())


ROUTES = [Route("/v1/batches/{id}/events", events, methods=["GET"])]
