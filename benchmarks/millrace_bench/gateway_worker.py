"""A worker that costs nothing: it leases and ends jobs through the real stream code, and has no model.

Run as `python -m millrace_bench.gateway_worker <redis url>`. A job says in its metadata what is to become of it:
`after`, seconds until its end, and for one that streams `tokens` and `every`, seconds between them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time

from millrace_schemas import (
    MODELS,
    Choice,
    FinishReason,
    JobState,
    ModelInfo,
    QueueKeys,
    Request,
    Result,
    Usage,
    decode,
    encode,
)
from millrace_worker.config import StreamConfig
from millrace_worker.stream.closing import Ending
from millrace_worker.stream.connection import connect, connect_blocking
from millrace_worker.stream.consumer import JobConsumer
from millrace_worker.stream.lease import LeasedJob, LeaseTable
from millrace_worker.stream.objects import ObjectStore
from millrace_worker.stream.progress import Progress
from millrace_worker.stream.publisher import Publisher

#: The model that this worker serves, and one that nobody does: its queue takes jobs and costs no worker.
MODEL, IDLE_MODEL = "bench", "bench-idle"
_BLOCK = 0.5
_LEASES = 2048
#: Seconds that a registration lasts; longer than any run.
_TTL = 86_400


async def register(url: str) -> None:
    """Registers both models, as workers do."""
    client = connect(url)
    for name in (MODEL, IDLE_MODEL):
        info = ModelInfo(name=name, max_model_len=4096, vocab_size=256, has_chat_template=True)
        await client.set(QueueKeys(name).model, encode(info), ex=_TTL)
        await client.zadd(MODELS, {name: time.time() + _TTL})
    await client.aclose()


class NothingWorker:
    """Leases whatever comes, and ends it when the job's metadata says so."""

    def __init__(self, url: str):
        self._client, self._blocking = connect(url), connect_blocking(url, _BLOCK)
        keys, leases, name = QueueKeys(MODEL), LeaseTable(), f"nothing-{os.getpid()}"
        self._consumer = JobConsumer(self._client, self._blocking, keys, name, leases, 3, _BLOCK, self._take)
        self._publisher = Publisher(
            self._client, keys, name, leases, ObjectStore(), StreamConfig(result_ttl=600), lambda lease: None
        )
        self._leases = leases
        self._jobs: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until it is cancelled."""
        await self._consumer.ensure_group()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._publisher.run())
            while True:
                room = _LEASES - len(self._leases)
                if room <= 0:
                    await asyncio.sleep(0.01)
                elif not await self._consumer.next(min(room, 256), wait=True):
                    continue

    def _take(self, leased: LeasedJob) -> None:
        task = asyncio.create_task(self._answer(leased))
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    async def _answer(self, leased: LeasedJob) -> None:
        request = decode(leased.request, Request)
        wanted = request.metadata
        tokens: list[int] = []
        progress = Progress(leased.lease, tokens, stream=leased.stream)
        if leased.stream:
            self._publisher.follow(progress)
            self._publisher.poke()
            for i in range(int(wanted.get("tokens", "1"))):
                if i:
                    await asyncio.sleep(float(wanted.get("every", "0")))
                tokens.append(65 + i % 26)
                progress.add_text(chr(tokens[-1]))
                self._publisher.poke()
        await asyncio.sleep(float(wanted.get("after", "0")))
        choice = Choice(0, "".join(map(chr, tokens)), tuple(tokens), FinishReason.STOP)
        result = Result(
            id=leased.lease.job_id, model=MODEL, state=JobState.COMPLETED, choices=(choice,), metadata=wanted,
            usage=Usage(prompt_tokens=8, completion_tokens=len(tokens)), attempts=leased.lease.attempt,
        )  # fmt: skip
        await self._publisher.finish(Ending(leased.lease, result, progress))


async def _main(url: str) -> None:
    await register(url)
    running = asyncio.create_task(NothingWorker(url).run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    print("ready", flush=True)
    with contextlib.suppress(asyncio.CancelledError):
        await running


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
