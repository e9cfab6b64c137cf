"""Jobs for a request, and work that stops when its client leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import Request

from millrace import AsyncJob, Result
from millrace.openai_api.params import rename
from millrace_schemas import MillraceError, ResultTimeout
from millrace_schemas.aio import end_tasks

from .caller import client_of
from .errors import ApiError
from .settings import GatewaySettings
from .sse import wait_for_leave

R = TypeVar("R")
_log = logging.getLogger(__name__)


class ClientLeft(ApiError):
    """The client closed its connection; nobody reads this answer, and only metrics count it."""

    def __init__(self) -> None:
        super().__init__(499, "the client left before the answer", code="client_closed_request")


async def unless_left(request: Request, work: Coroutine[Any, Any, R]) -> R:
    """The result of `work`; it is cancelled when the client leaves first. The body must have been read.

    Raises ClientLeft.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(wait_for_leave(request.receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeft
    finally:
        await end_tasks(working, leaving)


async def cancel_quietly(job: AsyncJob) -> None:
    """Cancels a job that nobody waits for any more; should that fail, it ends as jobs do."""
    try:
        await job.cancel()
    except MillraceError as e:
        _log.warning("%s, which nobody waits for, could not be cancelled: %s", job.id, e)


async def submit(
    request: Request, fields: Mapping[str, Any], idempotency_key: str | None, names: Mapping[str, str]
) -> AsyncJob:
    """Submits a job of these arguments; errors speak of the body's `names`."""
    client = client_of(request)
    try:
        return await client.submit(**fields, idempotency_key=idempotency_key)
    except MillraceError as e:
        raise rename(e, names) from e


async def result_of(request: Request, job: AsyncJob, *, keep: bool) -> Result:
    """The job's result. Unless it is to be kept, a job that nobody else can ask for ends when its client leaves.

    Raises the job's error.
    """
    settings: GatewaySettings = request.app.state.settings
    try:
        return await unless_left(request, job.result(settings.answer_timeout))
    except (ClientLeft, ResultTimeout):
        if not keep:
            await cancel_quietly(job)
        raise
