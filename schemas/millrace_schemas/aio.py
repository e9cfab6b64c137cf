"""What the event loops of producer and worker share."""

from __future__ import annotations

import asyncio
from typing import Any

#: Seconds after which a task that has not ended is cancelled again; longer than a task needs to clean up.
_AGAIN = 1.0


async def end_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancels `tasks` and returns when all have ended, however they ended.

    One cancellation is not enough: `asyncio.wait_for` of Python 3.11, through which redis-py writes, loses one that
    arrives as what it waits for is done, and the task would go on for ever.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_AGAIN)
    for task in tasks:
        if not task.cancelled():
            # Looked at, so that nobody is told that it never was.
            task.exception()
