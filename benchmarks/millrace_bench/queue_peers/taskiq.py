"""taskiq with taskiq-redis: `kiq`, many at once; results by `wait_result`, many at once.

Variants, by its brokers: list, stream.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

from millrace_bench.queue_peers import program

#: Calls under way at once, by as many connections.
_CHUNK = 128
#: Seconds between two looks of one call: more often, and those that wait keep the worker from working.
_LOOK = 0.1
_AT_ONCE = 100


async def answer(text: str) -> str:
    """The job."""
    program.first_job()
    return text


class Taskiq:
    packages = ("taskiq", "taskiq-redis", "redis", "hiredis", "uvloop")

    def __init__(self, url: str, variant: str):
        import taskiq_redis

        # Without a timeout of the socket: redis-py 8 has one of 5 s, which ends an idle worker's blocking read.
        common: dict[str, Any] = {"max_connection_pool_size": _CHUNK, "socket_timeout": None}
        if variant == "list":
            self._broker: Any = taskiq_redis.ListQueueBroker(url, **common)
        else:
            # "0": the group sees what was sent before the first worker came.
            self._broker = taskiq_redis.RedisStreamBroker(url, consumer_id="0", **common)
        self._broker = self._broker.with_result_backend(taskiq_redis.RedisAsyncResultBackend(url, **common))
        self._task = self._broker.register_task(answer, task_name="answer")
        self._runner = asyncio.Runner(loop_factory=_loop)
        self._started = False

    def enqueue(self, texts: Sequence[str]) -> list[Any]:
        return self._runner.run(self._enqueue(texts))

    def result_keys(self, handles: Sequence[Any]) -> list[str]:
        return [task.task_id for task in handles]

    def read(self, handles: Sequence[Any]) -> list[str]:
        return self._runner.run(self._read(handles))

    def work(self) -> None:
        self._runner.run(self._work())

    async def _enqueue(self, texts: Sequence[str]) -> list[Any]:
        if not self._started:
            await self._broker.startup()
            self._started = True
        tasks: list[Any] = []
        for at in range(0, len(texts), _CHUNK):
            tasks += await asyncio.gather(*(self._task.kiq(text) for text in texts[at : at + _CHUNK]))
        return tasks

    async def _read(self, tasks: Sequence[Any]) -> list[str]:
        answers: list[str] = []
        for at in range(0, len(tasks), _CHUNK):
            some = tasks[at : at + _CHUNK]
            results = await asyncio.gather(*(task.wait_result(check_interval=_LOOK) for task in some))
            answers += [result.return_value for result in results]
        return answers

    async def _work(self) -> None:
        from taskiq.api import run_receiver_task

        await run_receiver_task(
            self._broker, run_startup=True, max_async_tasks=_AT_ONCE, max_prefetch=_AT_ONCE, validate_params=False
        )


def _loop() -> asyncio.AbstractEventLoop:
    """Of uvloop where it is installed, as taskiq's own command does."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


if __name__ == "__main__":
    sys.exit(program.run(Taskiq))
