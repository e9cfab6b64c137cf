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
from millrace.bulk.errors import BatchNotFound
from millrace.bulk.glance import Glance, Paces
from millrace.bulk.store import BatchStore, View
from millrace_schemas import QueueUnavailable
from millrace_schemas.batch import BATCH_TERMINAL

from .errors import ApiError
from .files import connection_of, seen_by
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
    _, seen = seen_by(request)
    batch_id, known = request.path_params["id"], request.headers.get("last-event-id", "")
    store = BatchStore(connection_of(request))
    paces: Paces = request.app.state.history.paces
    view, glance = await _look(store, paces, batch_id, seen)
    if glance.is_over and _id_of(glance) == known:
        return Response(status_code=204)
    slot = request.app.state.slots.take()
    return EventResponse(
        _events(store, paces, view, glance, seen, known), settings=request.app.state.settings, slot=slot
    )  # fmt: skip


async def _events(
    store: BatchStore, paces: Paces, view: View, glance: Glance, seen: str | None, known: str
) -> AsyncIterator[bytes]:
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
            view, glance = await _look(store, paces, glance.id, seen)
        except QueueUnavailable:
            # The client would come back to an error, and a browser would then stay away. The batch is where it was.
            continue


async def _look(store: BatchStore, paces: Paces, batch_id: str, seen: str | None) -> tuple[View, Glance]:
    """Raises ApiError, QueueUnavailable."""
    try:
        view = await store.view(batch_id, seen)
    except BatchNotFound as e:
        raise ApiError(404, str(e), code="batch_not_found", param="batch_id") from None
    return view, paces.glance(view, await store.now())


def _id_of(glance: Glance) -> str:
    """The same for the same state, on all gateways."""
    digest: Any = hashlib.blake2b(repr(glance.state).encode(), digest_size=8)
    return str(digest.hexdigest())


ROUTES = [Route("/v1/batches/{id}/events", events, methods=["GET"])]
