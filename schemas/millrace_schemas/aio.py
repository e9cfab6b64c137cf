"""What the event loops of producer and worker share."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

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


async def unless_set(event: asyncio.Event, work: Coroutine[Any, Any, T] | asyncio.Future[T]) -> T | None:
    """The result of `work`, or None once `event` is set; `work` is then cancelled."""
    task = asyncio.ensure_future(work)
    stopped = asyncio.create_task(event.wait())
    try:
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        await end_tasks(task, stopped)
