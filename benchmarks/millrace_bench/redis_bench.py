"""The same jobs through everything: a client, a private Redis, a whole worker, and the results back at the client.

A run's time goes from its first submit to its last result. A worker's prefix cache cannot be emptied from outside, so
every run moves all token ids by another number: lengths and shared beginnings stay, and nothing of an earlier run is
found.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from millrace import AsyncClient
from millrace.async_job import AsyncJob
from millrace.demo_worker import DemoWorker
from millrace.embedded import EmbeddedRedis
from millrace.errors import WorkerDied
from millrace_schemas import MillraceError, Result
from millrace_schemas.aio import end_tasks

from .comparison import Bench
from .peer_process import log_file
from .results import THROUGH_REDIS, Row, best
from .workloads import Job

#: The least share of the engine's own rate, in percent, that is to come through.
TARGET_PERCENT = 97.0
#: Jobs of one call of submit_many: the engine has the first ones while the client packs the next.
_CHUNK = 64
#: What `millrace worker` renews in production.
_LEASE = 30.0
_POLL = 0.2
#: Between the ids of one run and of the next. Prime, so that no vocabulary brings them back soon.
_STRIDE = 7919


def run_through_redis(bench: Bench, timeout: float, vocab_size: int, say: Callable[[str], None]) -> Iterator[Row]:
    """A row for each workload. `timeout` is the most seconds of the worker's start and of each run."""
    log = log_file(THROUGH_REDIS)
    open_ = [name for name, _ in bench.workloads]
    offsets = (number * _STRIDE % vocab_size for number in itertools.count())
    try:
        with (
            EmbeddedRedis() as server,
            DemoWorker(server.url, log, model=str(bench.directory), lease=_LEASE, options=_options(bench)) as worker,
        ):
            asyncio.run(_wait_for_model(server.url, worker, timeout))
            say(f"{THROUGH_REDIS} is ready")
            asyncio.run(_run(server.url, worker, bench.warm_up, bench.temperature, timeout))
            for name, jobs in bench.workloads:
                runs = []
                for _ in range(bench.repeats):
                    moved = _moved(jobs, next(offsets), vocab_size)
                    runs.append(asyncio.run(_run(server.url, worker, moved, bench.temperature, timeout)))
                    say(f"{THROUGH_REDIS}, {name}: {runs[-1]['seconds']:.1f} s")
                open_.remove(name)
                yield best(THROUGH_REDIS, name, runs)
    except (MillraceError, TimeoutError) as e:
        words = e.log.rpartition("\n")[2] if isinstance(e, WorkerDied) else ""
        reason = f"{e} {words}".strip() or f"it took more than {timeout:g} s (--vs-timeout)"
        for name in open_:
            yield Row(engine=THROUGH_REDIS, workload=name, failed=reason, log=str(log))


def _options(bench: Bench) -> list[str]:
    """The flags of `millrace worker` for the settings that the engine alone was given."""
    given = {name: value for name, value in bench.flags.items() if name != "model" and value is not None}
    return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def _moved(jobs: Sequence[Job], offset: int, vocab_size: int) -> list[Job]:
    return [Job([(token + offset) % vocab_size for token in job.prompt], job.max_tokens) for job in jobs]


async def _wait_for_model(url: str, worker: DemoWorker, timeout: float) -> None:
    async with asyncio.timeout(timeout), AsyncClient(url) as client:
        while not await client.models():
            worker.check("before it served")
            await asyncio.sleep(_POLL)


async def _run(url: str, worker: DemoWorker, jobs: Sequence[Job], temperature: float, timeout: float) -> dict[str, Any]:
    """The figures of one run, in the form of a peer's. Raises WorkerDied, MillraceError, TimeoutError."""
    requests = [
        {
            "prompt_token_ids": job.prompt,
            "sampling": {"max_tokens": job.max_tokens, "temperature": temperature, "ignore_eos": True, "seed": i},
        }
        for i, job in enumerate(jobs)
    ]
    async with asyncio.timeout(timeout), AsyncClient(url, worker.served_name) as client:
        # Connects, and reads what the client knows of the model.
        await client.models()
        watching = asyncio.create_task(_watch(worker))
        began = time.perf_counter()
        working = asyncio.create_task(_results(client, requests))
        try:
            await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
            results = await working
            seconds = time.perf_counter() - began
        finally:
            await end_tasks(watching, working)
    for job, result in zip(jobs, results, strict=True):
        if result.usage.completion_tokens != job.max_tokens:
            raise MillraceError(f"{result.id} has {result.usage.completion_tokens} tokens, not {job.max_tokens}")
    return {
        "requests": len(jobs),
        "seconds": seconds,
        "prompt_tokens": sum(len(job.prompt) for job in jobs),
        "output_tokens": sum(job.max_tokens for job in jobs),
        "share": 1.0,
        "figures": {"cached_tokens": sum(result.usage.cached_tokens for result in results)},
    }


async def _results(client: AsyncClient, requests: Sequence[dict[str, Any]]) -> list[Result]:
    """Submits while results are already read."""
    waits: list[asyncio.Task[Result]] = []
    try:
        for first in range(0, len(requests), _CHUNK):
            jobs: list[AsyncJob] = await client.submit_many(requests[first : first + _CHUNK])
            waits += [asyncio.create_task(job.result()) for job in jobs]
        return await asyncio.gather(*waits)
    finally:
        await end_tasks(*waits)


async def _watch(worker: DemoWorker) -> None:
    """Never returns; raises WorkerDied."""
    while True:
        worker.check("with jobs under way")
        await asyncio.sleep(_POLL)
