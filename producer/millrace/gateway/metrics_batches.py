"""What /metrics says of batches, read from Redis at each scrape."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from millrace.bulk.unfinished import Unfinished, read_unfinished
from millrace.connection import Connection
from millrace_schemas import MillraceError
from millrace_schemas.exposition import Family, one


async def read_batches(connection: Connection | None, patience: float) -> Unfinished | None:
    """None without Redis, or when it has not answered after `patience` seconds."""
    if connection is None:
        return None
    try:
        async with asyncio.timeout(patience):
            return await read_unfinished(connection)
    except (MillraceError, TimeoutError):
        return None


def describe_batches(found: Unfinished | None) -> Iterator[Family]:
    """Each gateway tells the same of them: take the maximum over gateways, not the sum."""
    if found is None:
        return
    yield Family(
        "millrace_batches",
        "gauge",
        "Batches without an end, by status.",
        [({"status": status}, number) for status, number in sorted(found.by_status.items())],
    )
    yield Family(
        "millrace_batch_requests",
        "gauge",
        "Requests of batches without an end: all of them, and those that have ended.",
        [({"state": state}, getattr(found, state)) for state in ("total", "completed", "failed")],
    )
    yield one("millrace_batches_waiting", "gauge", "Batches that have a problem and are tried again.", found.waiting)
    yield one(
        "millrace_batches_expiring", "gauge", "Batches that will not be done in their window, as things are.",
        found.expiring,
    )  # fmt: skip
    yield one(
        "millrace_batches_unattended", "gauge", "Batches that have been due for a minute: no bulk worker runs.",
        found.unattended,
    )  # fmt: skip
