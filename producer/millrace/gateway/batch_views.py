"""Batches for whoever asks for them over HTTP."""

from __future__ import annotations

from starlette.requests import Request

from millrace.bulk.errors import BatchNotFound
from millrace.bulk.public import public
from millrace.bulk.store import BatchStore, View

from .errors import ApiError
from .files import connection_of, seen_by


async def view_of(request: Request, batch_id: str) -> View:
    """The batch, if it is one of the caller's, with what the caller may know of it.

    Raises ApiError (404), QueueUnavailable.
    """
    _, seen = seen_by(request)
    try:
        return shown(await BatchStore(connection_of(request)).view(batch_id, seen), seen)
    except BatchNotFound as e:
        raise ApiError(404, str(e), code="batch_not_found", param="batch_id") from None


def shown(view: View, seen: str | None) -> View:
    """`seen`: whose batches the caller may see; None: everybody's, and where their files are."""
    return view if seen is None else public(view)
