"""/v1/batches: files of requests, worked off by `millrace bulk`."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from millrace.bulk.described import describe
from millrace.bulk.errors import BatchNotFound
from millrace.bulk.expiry import read_expiry
from millrace.bulk.files import FileNotFound, FileStore
from millrace.bulk.rows import ENDPOINTS
from millrace.bulk.store import BatchStore
from millrace.bulk.submitting import make_batch

from .batch_views import shown, view_of
from .body import idempotency_key, read_object
from .errors import ApiError, JSONResponse, invalid
from .files import PURPOSE, check_query, connection_of, limit_of, page, place_of, seen_by

KNOWN = frozenset(
    {"input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after", "webhook"}
)  # fmt: skip
MAX_LISTED = 100


async def create(request: Request) -> Response:
    """With an Idempotency-Key, a repeat makes nothing and answers with the first batch."""
    body, key = await read_object(request), idempotency_key(request)
    place = place_of(request)
    unknown = sorted(name for name, value in body.items() if name not in KNOWN and value is not None)
    if unknown:
        raise invalid(f"there is no parameter {unknown[0][:80]!r}", param=unknown[0][:80], code="unknown_parameter")
    for name in ("input_file_id", "endpoint", "completion_window"):
        if not isinstance(body.get(name), str):
            raise invalid(f"{name} must be a string", param=name)
    if body["endpoint"] not in ENDPOINTS:
        raise invalid(f"endpoint must be one of {', '.join(ENDPOINTS)}", param="endpoint")
    metadata = {} if body.get("metadata") is None else body["metadata"]
    if not isinstance(metadata, dict):
        raise invalid("metadata must be an object", param="metadata")
    webhook = body.get("webhook")
    if webhook is not None and (not isinstance(webhook, str) or not webhook):
        raise invalid("webhook must be a URL", param="webhook")
    output_expires_after = read_expiry(body.get("output_expires_after"), "output_expires_after")
    connection, (tenant, seen) = connection_of(request), seen_by(request)
    store = BatchStore(connection)
    batch_id = None if key is None else _id_of(tenant, key)
    if batch_id is not None:
        # Its file may be gone by now.
        with suppress(BatchNotFound):
            return JSONResponse(describe(shown(await store.view(batch_id), seen)))
    try:
        file = await FileStore(connection).get(body["input_file_id"], seen)
    except FileNotFound as e:
        raise ApiError(404, str(e), code="file_not_found", param="input_file_id") from None
    if file.purpose != PURPOSE:
        raise invalid(f"{file.id} has the purpose {file.purpose!r}, not {PURPOSE!r}", param="input_file_id")
    batch = make_batch(
        file.location,
        place,
        now=await store.now(),
        window=body["completion_window"],
        endpoint=body["endpoint"],
        tenant=tenant,
        metadata=metadata,
        input_file_id=file.id,
        output_expires_after=output_expires_after,
        webhook=webhook or "",
        batch_id=batch_id,
    )
    await store.create(batch)
    return JSONResponse(describe(await view_of(request, batch.id)))


async def list_batches(request: Request) -> Response:
    check_query(request, {"limit", "after"})
    limit = limit_of(request, MAX_LISTED, 20)
    _, seen = seen_by(request)
    after = request.query_params.get("after")
    try:
        views = await BatchStore(connection_of(request)).newest(seen or "", limit + 1, after)
    except BatchNotFound:
        raise ApiError(404, f"this list has no batch {after!r:.80}", code="batch_not_found", param="after") from None
    views = [shown(view, seen) for view in views if seen is None or view.batch.tenant == seen]
    return JSONResponse(page([describe(view) for view in views[:limit]], more=len(views) > limit))


async def retrieve(request: Request) -> Response:
    return JSONResponse(describe(await view_of(request, request.path_params["id"])))


async def cancel(request: Request) -> Response:
    """The batch, which is `cancelling` until what was under way has ended. One that has ended stays as it is."""
    view = await view_of(request, request.path_params["id"])
    await BatchStore(connection_of(request)).cancel(view.batch.id)
    return JSONResponse(describe(await view_of(request, view.batch.id)))


def _id_of(tenant: str, key: str) -> str:
    digest: Any = hashlib.blake2b(f"{tenant}\0{key}".encode(), digest_size=16)
    return f"batch_{digest.hexdigest()}"


ROUTES = [
    Route("/v1/batches", create, methods=["POST"]),
    Route("/v1/batches", list_batches, methods=["GET"]),
    Route("/v1/batches/{id}", retrieve, methods=["GET"]),
    Route("/v1/batches/{id}/cancel", cancel, methods=["POST"]),
]
