"""Whose turn it is in the front's loop: jobs of the batch lane, or everything else."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

import structlog

from millrace_worker.stream.lease import LeasedJob

log = structlog.get_logger(__name__)

#: Seconds of preparing batch jobs after which everything else has its turn.
TURN = 0.001


class BatchTurns:
    """Prepares batch jobs one after the other; between two turns, an interactive job is prepared and steps are handled.

    What is prepared in one turn reaches the engine in one frame.
    """

    def __init__(self, prepare: Callable[[LeasedJob], Awaitable[None]]):
        self._prepare = prepare
        self._waiting: deque[LeasedJob] = deque()

    def add(self, leased: LeasedJob) -> bool:
        """True when `run` has to be started for it: no other job is being prepared."""
        self._waiting.append(leased)
        return len(self._waiting) == 1

    async def run(self) -> None:
        """Until none is left."""
        while self._waiting:
            await asyncio.sleep(0)
            until = time.monotonic() + TURN
            while self._waiting:
                # Only then taken out: one that comes meanwhile must not start another run.
                try:
                    await self._prepare(self._waiting[0])
                except Exception:
                    log.exception("a job could not be begun", job=self._waiting[0].lease.job_id)
                self._waiting.popleft()
                if time.monotonic() >= until:
                    break
