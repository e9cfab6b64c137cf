"""Writes the pins that jobs ask for: many jobs in one round trip, as thousands may come behind one system prompt."""

from __future__ import annotations

import asyncio

import redis
import structlog

from .pins import PinRegistry, PinWish

log = structlog.get_logger(__name__)

#: Wishes of one round trip, and seconds for it.
_MOST = 128
_TIMEOUT = 2.0


class PinWriter:
    """Wishes become pins in the order in which they come; whatever goes wrong is noted in the job, and logged."""

    def __init__(self, registry: PinRegistry):
        self._registry = registry
        self._waiting: list[tuple[PinWish, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    def put(self, wish: PinWish) -> asyncio.Future[None]:
        """Done when it was written, or was given up. Nobody has to wait for it."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((wish, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return done

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
            wishes = [wish for wish, _ in batch]
            try:
                async with asyncio.timeout(_TIMEOUT):
                    for wish, problem in zip(wishes, await self._registry.put(wishes), strict=True):
                        if problem:
                            log.warning("the prefix of a job is not pinned", job=wish.job_id, reason=problem)
            except (redis.RedisError, OSError) as e:
                reason = f"the queue cannot be reached: {str(e) or type(e).__name__}"
                log.warning(
                    "the prefixes of jobs are not pinned", jobs=len(wishes), job=wishes[0].job_id, reason=reason
                )
            finally:
                for _, done in batch:
                    if not done.done():
                        done.set_result(None)
