"""Whose turn it is in the front's loop: jobs of the batch lane, or everything else."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from millrace_worker.stream.lease import LeasedJob

from .preparation import is_long

log = structlog.get_logger(__name__)

#: Seconds of preparing batch jobs after which everything else has its turn.
TURN = 0.001
#: Long texts that are tokenized at once, each in a thread: interactive jobs have the others.
LONG_AT_ONCE = 2


class BatchTurns:
    """Prepares batch jobs one after the other; between two turns, an interactive job is prepared and steps are handled.

    What is prepared in one turn reaches the engine in one frame. Long texts are prepared beside the turns, so that no
    short one waits for them, and in their own order.
    """

    def __init__(
        self,
        prepare: Callable[[LeasedJob], Awaitable[None]],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ):
        """`spawn` runs something beside the loop."""
        self._prepare = prepare
        self._spawn = spawn
        self._waiting: deque[LeasedJob] = deque()
        self._long = asyncio.Semaphore(LONG_AT_ONCE)

    def add(self, leased: LeasedJob) -> None:
        """The job is prepared when its turn comes."""
        if is_long(leased):
            self._spawn(self._beside(leased))
            return
        self._waiting.append(leased)
        if len(self._waiting) == 1:
            self._spawn(self._turns())

    async def _beside(self, leased: LeasedJob) -> None:
        async with self._long:
            await self._begin(leased)

    async def _turns(self) -> None:
        """Until no job waits."""
        while self._waiting:
            await asyncio.sleep(0)
            until = time.monotonic() + TURN
            while self._waiting:
                # Only then taken out: one that comes meanwhile must not start another run.
                await self._begin(self._waiting[0])
                self._waiting.popleft()
                if time.monotonic() >= until:
                    break

    async def _begin(self, leased: LeasedJob) -> None:
        try:
            await self._prepare(leased)
        except Exception:
            log.exception("a job could not be begun", job=leased.lease.job_id)
