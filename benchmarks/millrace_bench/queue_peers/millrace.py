"""Millrace: `AsyncClient.submit_many` and `AsyncJob.result`; the real worker, whose engine has no model.

Variants: the lanes, interactive and batch.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

from millrace_bench.queue_peers import program

MODEL = "bench"


class Millrace:
    packages = ("millrace", "redis", "hiredis", "uvloop")

    def __init__(self, url: str, variant: str):
        from millrace import AsyncClient

        self._url, self._lane = url, variant
        self._runner = asyncio.Runner()
        self._client = AsyncClient(url, MODEL)
        self._registered = False

    def enqueue(self, texts: Sequence[str]) -> list[Any]:
        return self._runner.run(self._enqueue(texts))

    def result_keys(self, handles: Sequence[Any]) -> list[str]:
        from millrace_schemas import QueueKeys, queue_of_job

        return [QueueKeys(queue_of_job(job.id)).result(job.id) for job in handles]

    def read(self, handles: Sequence[Any]) -> list[str]:
        return self._runner.run(self._read(handles))

    def work(self) -> None:
        from millrace_bench.bulk_chaos_worker import CharacterTokenizer
        from millrace_worker.cli import run_worker
        from millrace_worker.config import load
        from millrace_worker.front.text import TextTools
        from millrace_worker.stop import StopChecker

        settings = {"redis_url": self._url, "served_model_name": MODEL, "log_level": "warning", "log_format": "json"}
        engine = [sys.executable, "-m", "millrace_bench.queue_engine", sys.argv[3]]
        run_worker(load(settings), tools=TextTools(CharacterTokenizer(), StopChecker), engine_command=engine)

    async def _enqueue(self, texts: Sequence[str]) -> list[Any]:
        if not self._registered:
            await register(self._url)
            self._registered = True
        return await self._client.submit_many(
            [{"prompt": text, "lane": self._lane, "sampling": {"max_tokens": len(text)}} for text in texts]
        )

    async def _read(self, jobs: Sequence[Any]) -> list[str]:
        return [result.text for result in await asyncio.gather(*(job.result() for job in jobs))]


async def register(url: str) -> None:
    """Registers the model, as a worker does: jobs are taken before one is there."""
    import redis.asyncio

    from millrace_schemas import MODELS, ModelInfo, QueueKeys, encode

    info = ModelInfo(name=MODEL, max_model_len=4096, vocab_size=256, has_chat_template=True)
    async with redis.asyncio.Redis.from_url(url) as client:
        await client.set(QueueKeys(MODEL).model, encode(info), ex=86_400)
        await client.zadd(MODELS, {MODEL: 4e9})


if __name__ == "__main__":
    sys.exit(program.run(Millrace))
