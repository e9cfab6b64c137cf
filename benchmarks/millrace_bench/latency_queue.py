"""The same arrivals as in latency.py through all of it: Redis, a worker with its engine, and a client that streams."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from millrace import AsyncClient, Sampling
from millrace.embedded import EmbeddedRedis
from millrace_schemas import Finished, JobState, Tokens
from millrace_schemas.aio import end_tasks

from .arrivals import Arrival
from .latency import Load, expected, warm_up_arrivals
from .latency_figures import figures
from .timeline import Timeline
from .workloads import Job

MODEL = "bench"
_GRACE = 5.0
_LAST_LINES = 15


class QueueWorker:
    """`python -m millrace_worker` with these settings, from its start to the end of its drain."""

    def __init__(self, redis_url: str, log: Path, settings: Mapping[str, object]):
        self._log = log
        self._command = [sys.executable, "-m", "millrace_worker"]
        chosen = {**settings, "redis_url": redis_url, "served_model_name": MODEL, "grace": _GRACE}
        for name, value in chosen.items():
            if value is not None:
                self._command += [f"--{name.replace('_', '-')}", str(value)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> QueueWorker:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(_GRACE + 10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def check(self) -> None:
        """Raises RuntimeError with its last words when the process has ended."""
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            words = "\n".join(self._log.read_text(errors="replace").splitlines()[-_LAST_LINES:])
            raise RuntimeError(f"the worker ended with code {code}:\n{words}")


def measure(
    settings: Mapping[str, object], jobs: list[Job], vocab_size: int, load: Load, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """A row for each threshold and rate; every threshold has a worker of its own. `settings` are the worker's.

    A worker's prefix cache cannot be emptied from outside, so no two runs have the same token ids.
    Raises RuntimeError when the worker ends or a job fails.
    """
    run = 0
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as directory, EmbeddedRedis() as server:
        for threshold in load.thresholds:
            chosen = {**settings, "long_prefill_token_threshold": threshold}
            with QueueWorker(server.url, Path(directory) / f"worker-{threshold}.log", chosen) as worker:
                asyncio.run(_wait_for_model(server.url, worker))
                asyncio.run(drive(server.url, worker, warm_up_arrivals(jobs), load.temperature))
                for rate in load.rates:
                    run += 1
                    coming = load.arrivals(jobs, rate, vocab_size, run)
                    say(expected(coming, rate, threshold))
                    timelines = asyncio.run(drive(server.url, worker, coming, load.temperature))
                    yield figures(timelines, rate, load.limits, threshold)


async def drive(url: str, worker: QueueWorker, coming: list[Arrival], temperature: float) -> list[Timeline]:
    """Submits each request when it is due, and takes the time of its events. Raises RuntimeError."""
    timelines = [Timeline(arrival) for arrival in coming]
    async with AsyncClient(url) as client:
        await client.models()  # connects
        start = time.perf_counter()
        asking = [
            asyncio.create_task(_ask(client, number, timeline, temperature, start))
            for number, timeline in enumerate(timelines)
        ]
        answered = asyncio.create_task(_all(asking))
        watching = asyncio.create_task(_watch(worker))
        try:
            done, _ = await asyncio.wait({answered, watching}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await end_tasks(answered, watching, *asking)
    for number, timeline in enumerate(timelines):
        timeline.check(number)
    return timelines


async def _ask(client: AsyncClient, number: int, timeline: Timeline, temperature: float, start: float) -> None:
    arrival = timeline.arrival
    await asyncio.sleep(arrival.due - (time.perf_counter() - start))
    timeline.sent = time.perf_counter() - start
    job = await client.submit(
        prompt_token_ids=arrival.job.prompt,
        model=MODEL,
        stream=True,
        sampling=Sampling(
            max_tokens=arrival.job.max_tokens, temperature=temperature, seed=number, ignore_eos=True
        ),
    )  # fmt: skip
    async for event in job.events():
        now = time.perf_counter() - start
        if isinstance(event, Tokens) and event.token_ids:
            timeline.add(now, len(event.token_ids))
        elif isinstance(event, Finished):
            timeline.ended = now
            timeline.cached = event.result.usage.cached_tokens
            if event.result.state is not JobState.COMPLETED:
                reason = event.result.error.message if event.result.error else event.result.state
                raise RuntimeError(f"request {number} failed: {reason}")


async def _all(asking: list[asyncio.Task[None]]) -> None:
    await asyncio.gather(*asking)


async def _watch(worker: QueueWorker) -> None:
    while True:
        worker.check()
        await asyncio.sleep(0.5)


async def _wait_for_model(url: str, worker: QueueWorker) -> None:
    async with AsyncClient(url) as client:
        while MODEL not in {model.name for model in await client.models()}:
            worker.check()
            await asyncio.sleep(0.1)
