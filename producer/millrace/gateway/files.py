"""/v1/files: what batches read and write."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.concurrency import iterate_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from millrace.bulk.errors import StorageError
from millrace.bulk.expiry import read_form_expiry
from millrace.bulk.files import FileNotFound, FileStore
from millrace.bulk.storage import BLOCK, Input, storage_of
from millrace.connection import Connection
from millrace.tenant_backend import TenantBackend
from millrace_schemas.batch import BulkFile, new_file_id

from .caller import client_of
from .errors import ApiError, JSONResponse, invalid, unavailable
from .settings import GatewaySettings
from .upload import read_upload

log = logging.getLogger(__name__)
#: The one purpose of files that are sent here.
PURPOSE = "batch"
PURPOSES = (PURPOSE, "batch_output")
EXPIRES = "expires_after"
FIELDS = frozenset({"purpose", f"{EXPIRES}[anchor]", f"{EXPIRES}[seconds]"})
MAX_LISTED = 10_000
#: Seconds that an upload has to be written to its place; then it is taken for one whose gateway died.
_UNFINISHED = 3600.0
#: Storage that is slow holds up those who wait for it, and no large body or look-up of an address elsewhere.
_THREADS = ThreadPoolExecutor(32, thread_name_prefix="files")
T = TypeVar("T")


async def create(request: Request) -> Response:
    """Keeps the file under the gateway's place for files."""
    settings: GatewaySettings = request.app.state.settings
    place = place_of(request)
    upload = await read_upload(request, settings.max_file_bytes, settings.upload_timeout)
    try:
        unknown = sorted(upload.fields.keys() - FIELDS)
        if unknown:
            raise invalid(f"there is no parameter {unknown[0][:80]!r}", param=unknown[0][:80], code="unknown_parameter")
        if upload.fields.get("purpose") != PURPOSE:
            raise invalid(f"purpose must be {PURPOSE!r}", param="purpose")
        seconds = read_form_expiry(upload.fields, EXPIRES)
        store, (tenant, _) = FileStore(connection_of(request)), seen_by(request)
        now = await client_of(request)._backend.now()
        file_id = new_file_id()
        url = f"{place}{file_id}.jsonl"
        file = BulkFile(
            id=file_id, location=url, filename=upload.filename, size=upload.size, created_at=now, purpose=PURPOSE,
            expires_at=None if seconds is None else now + seconds, tenant=tenant,
        )  # fmt: skip
        # Whatever dies from here on, what was written by then is found and removed.
        await store.reserve(file, now + _UNFINISHED)
        with _stored(url):
            await _in_thread(storage_of(url).join, url, upload.blocks())
    finally:
        upload.file.close()
    await store.put(file)
    return JSONResponse(describe(file))


async def list_files(request: Request) -> Response:
    query = request.query_params
    check_query(request, {"purpose", "limit", "order", "after"})
    limit = limit_of(request, MAX_LISTED, MAX_LISTED)
    order, purpose, after = query.get("order", "desc"), query.get("purpose"), query.get("after")
    if order not in ("asc", "desc"):
        raise invalid("order must be asc or desc", param="order")
    _, seen = seen_by(request)
    try:
        found = await FileStore(connection_of(request)).page(
            seen or "", count=limit + 1, after=after, purpose=purpose, newest_first=order == "desc"
        )
    except FileNotFound:
        raise ApiError(404, f"this list has no file {after!r:.80}", code="file_not_found", param="after") from None
    files = [file for file in found if seen is None or file.tenant == seen]
    return JSONResponse(page([describe(file) for file in files[:limit]], more=len(files) > limit))


async def retrieve(request: Request) -> Response:
    return JSONResponse(describe(await _find(request)))


async def content(request: Request) -> Response:
    """As it is, a block at a time."""
    file = await _find(request)
    with _stored(file.location):
        try:
            source = await _in_thread(storage_of(file.location).open, file.location)
        except StorageError as e:
            if e.code != "not_found":
                raise
            log.error("the contents of a file are gone: %s", e)
            raise ApiError(
                404, f"the contents of {file.id} are gone", code="file_not_found", param="file_id"
            ) from e  # fmt: skip
    # Whatever happens to the file now: the answer has what it had, or breaks off.
    return StreamingResponse(
        iterate_in_threadpool(_blocks(source)),
        media_type="application/octet-stream",
        headers={"content-length": str(source.size)},
    )


async def delete(request: Request) -> Response:
    """Whether a batch still reads it is for the caller to know."""
    file = await _find(request)
    with _stored(file.location):
        await _in_thread(storage_of(file.location).remove, file.location)
    await FileStore(connection_of(request)).delete(file)
    return JSONResponse({"id": file.id, "object": "file", "deleted": True})


def describe(file: BulkFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": int(file.created_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "expires_at": None if file.expires_at is None else int(file.expires_at),
    }


def page(data: list[dict[str, Any]], *, more: bool) -> dict[str, Any]:
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": more,
    }


def check_query(request: Request, known: set[str]) -> None:
    for name in request.query_params:
        if name not in known:
            raise invalid(f"there is no parameter {name[:80]!r}", param=name[:80], code="unknown_parameter")


def limit_of(request: Request, most: int, default: int) -> int:
    text = request.query_params.get("limit", str(default))
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= most:
        raise invalid(f"limit must be a number from 1 to {most:,}", param="limit")
    return int(text)


def place_of(request: Request) -> str:
    """The prefix of this gateway's files. Raises ApiError when it has none."""
    settings: GatewaySettings = request.app.state.settings
    if settings.files is None:
        raise ApiError(
            404, "this gateway keeps no files; start it with --files s3://bucket/prefix or --files DIRECTORY",
            code="files_not_configured",
        )  # fmt: skip
    return settings.files.rstrip("/") + "/"


def connection_of(request: Request) -> Connection:
    connection: Connection | None = request.app.state.client._connection
    if connection is None:
        raise ApiError(404, "files and batches need a Redis, and this gateway has none", code="files_not_configured")
    return connection


def seen_by(request: Request) -> tuple[str, str | None]:
    """Whose the caller's files and batches are, and whose it may see; None: everybody's."""
    client = client_of(request)
    backend = client._backend
    if isinstance(backend, TenantBackend):
        return client._tenant or "", backend._tenant
    return "", None


@contextmanager
def _stored(url: str) -> Iterator[None]:
    """What is wrong with the place of the files is for its operator to know; a caller is to try again."""
    try:
        yield
    except StorageError as e:
        log.error("storage: %s", e)
        raise unavailable("the place where files are kept cannot be used right now", "storage_unavailable") from e


async def _in_thread(do: Callable[..., T], *args: object) -> T:
    return await asyncio.get_running_loop().run_in_executor(_THREADS, do, *args)


def _blocks(source: Input) -> Iterator[bytes]:
    try:
        for offset in range(0, source.size, BLOCK):
            yield source.read(offset, BLOCK)
    finally:
        source.close()


async def _find(request: Request) -> BulkFile:
    _, seen = seen_by(request)
    try:
        return await FileStore(connection_of(request)).get(request.path_params["id"], seen)
    except FileNotFound as e:
        raise ApiError(404, str(e), code="file_not_found", param="file_id") from None


ROUTES = [
    Route("/v1/files", create, methods=["POST"]),
    Route("/v1/files", list_files, methods=["GET"]),
    Route("/v1/files/{id}", retrieve, methods=["GET"]),
    Route("/v1/files/{id}", delete, methods=["DELETE"]),
    Route("/v1/files/{id}/content", content, methods=["GET"]),
]
