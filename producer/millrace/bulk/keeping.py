"""What is owned stays owned while its owner works on it, however long a write takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from millrace_schemas import QueueUnavailable
from millrace_schemas.aio import end_tasks

from .errors import LeaseLost
from .store import BatchStore, Owned

#: Seconds between two renewals, which also tell of cancellations and failures.
_EVERY = 1.0


@asynccontextmanager
async def kept(store: BatchStore, owned: Owned, lease: float) -> AsyncIterator[None]:
    """Renews `owned` beside the block. When somebody else has it, `owned.is_lost` says so, and every write fails."""

    async def keep() -> None:
        while True:
            await asyncio.sleep(min(_EVERY, lease / 3))
            try:
                await store.keep(owned, lease)
            except LeaseLost:
                return
            except QueueUnavailable:
                # The block meets the same trouble, or is done before it matters.
                continue

    keeping = asyncio.create_task(keep())
    try:
        yield
    finally:
        await end_tasks(keeping)
