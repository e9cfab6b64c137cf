"""arq: `enqueue_job`, many at once; results by `Job.result`, many at once."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from typing import Any

from millrace_bench.queue_peers import program

#: Calls under way at once, by as many connections.
_CHUNK = 128
#: Seconds between two looks of one call: more often, and those that wait keep the worker from working.
_LOOK = 0.1


async def answer(context: dict[str, Any], text: str) -> str:
    """The job."""
    program.first_job()
    return text


class Arq:
    packages = ("arq", "redis", "hiredis")

    def __init__(self, url: str, variant: str):
        from arq.connections import RedisSettings

        self._settings = RedisSettings.from_dsn(url)
        self._settings.max_connections = _CHUNK
        self._runner = asyncio.Runner()
        self._pool: Any = None

    def enqueue(self, texts: Sequence[str]) -> list[Any]:
        return self._runner.run(self._enqueue(texts))

    def result_keys(self, handles: Sequence[Any]) -> list[str]:
        return [f"arq:result:{job.job_id}" for job in handles]

    def read(self, handles: Sequence[Any]) -> list[str]:
        return self._runner.run(self._read(handles))

    def work(self) -> None:
        """More jobs at once and shorter pauses than arq's own 10 and 0.5 s: it reads 100 jobs, then pauses."""
        from arq.worker import Worker

        logging.getLogger("arq").setLevel(logging.WARNING)
        asyncio.set_event_loop(asyncio.new_event_loop())
        Worker(
            [answer],
            redis_settings=self._settings,
            max_jobs=100,
            queue_read_limit=1000,
            poll_delay=0.01,
            log_results=False,
        ).run()

    async def _enqueue(self, texts: Sequence[str]) -> list[Any]:
        from arq import create_pool

        if self._pool is None:
            self._pool = await create_pool(self._settings)
        jobs: list[Any] = []
        for at in range(0, len(texts), _CHUNK):
            some = texts[at : at + _CHUNK]
            jobs += await asyncio.gather(*(self._pool.enqueue_job("answer", text) for text in some))
        return jobs

    async def _read(self, jobs: Sequence[Any]) -> list[str]:
        answers: list[str] = []
        for at in range(0, len(jobs), _CHUNK):
            some = jobs[at : at + _CHUNK]
            answers += await asyncio.gather(*(job.result(poll_delay=_LOOK) for job in some))
        return answers


if __name__ == "__main__":
    sys.exit(program.run(Arq))
