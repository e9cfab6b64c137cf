"""`millrace demo`: a Redis, a worker and a model on this machine, real prompts through all of it, and the numbers."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Protocol

from rich.console import Console

from millrace_schemas import WorkerInfo
from millrace_schemas.aio import end_tasks

from .async_client import AsyncClient
from .async_job import AsyncJob
from .demo_report import DemoAnswer, DemoPrompt, DemoReport
from .demo_tasks import PROMPT_OF_TASK, make_example, system_prompt
from .demo_worker import MODEL, DemoWorker
from .embedded import EmbeddedRedis
from .errors import WorkerDied
from .termination import terminated_as_exit

#: Seconds until a worker must be ready, and until all jobs must have ended.
_START_TIMEOUT, _RUN_TIMEOUT = 120.0, 300.0
#: Seconds that the report waits for a heartbeat that counts all jobs.
_BEAT_TIMEOUT = 6.0
_MAX_TOKENS = 96
_POLL = 0.2


class Worker(Protocol):
    """What a run needs to know of the process that serves it."""

    def check(self, doing: str) -> None: ...

    def last_lines(self) -> str: ...


def make_prompts(count: int, seed: int) -> list[DemoPrompt]:
    """`count` questions that the model was not trained on, the tasks in turn."""
    rng, tasks = Random(seed), tuple(PROMPT_OF_TASK)
    prompts = []
    for i in range(count):
        task = tasks[i % len(tasks)]
        example = make_example(rng, task, split="held_out")
        prompts.append(DemoPrompt(task, system_prompt(task), example.user, example.answer))
    return prompts


def run_demo(*, jobs: int = 64, seed: int = 0, quiet: bool = False) -> DemoReport:
    """Runs the demo. Worker and Redis are stopped whatever happens, also on Ctrl-C and SIGTERM.

    Raises QueueUnavailable without a Redis server to start, WorkerDied with its last lines when the worker ends early,
    MillraceError when the worker is not installed.
    """
    console = Console(stderr=True, quiet=quiet)
    with terminated_as_exit(), tempfile.TemporaryDirectory(prefix="millrace-demo-") as directory:
        console.print("starting Redis and a worker with the demo model ...")
        with EmbeddedRedis() as redis, DemoWorker(redis.url, Path(directory) / "worker.log") as worker:
            return asyncio.run(run_prompts(redis.url, worker, make_prompts(jobs, seed), console))


async def run_prompts(url: str, worker: Worker, prompts: Sequence[DemoPrompt], console: Console) -> DemoReport:
    """Submits `prompts` once the model is registered, waits for every answer, and reports."""
    async with AsyncClient(url, MODEL) as client:
        await _until_registered(client, worker)
        console.print(f"submitting {len(prompts)} prompts under {len({p.system for p in prompts})} system prompts")
        began = time.monotonic()
        answers = await _answers(client, worker, prompts, console)
        seconds = time.monotonic() - began
        workers = await _last_beats(client, len(prompts))
    return DemoReport(answers, seconds, workers)


async def _until_registered(client: AsyncClient, worker: Worker) -> None:
    limit = time.monotonic() + _START_TIMEOUT
    while not any(model.name == MODEL for model in await client.models()):
        worker.check("before it was ready")
        if time.monotonic() > limit:
            raise WorkerDied(
                f"the worker is not ready after {_START_TIMEOUT:.0f} s; its last lines:", worker.last_lines()
            )
        await asyncio.sleep(_POLL)


async def _answers(
    client: AsyncClient, worker: Worker, prompts: Sequence[DemoPrompt], console: Console
) -> list[DemoAnswer]:
    """The answers to `prompts`, in their order; every job has ended."""
    jobs = await client.submit_many(
        {"system": p.system, "prompt": p.user, "sampling": {"temperature": 0.0, "max_tokens": _MAX_TOKENS}}
        for p in prompts
    )
    waits = [asyncio.create_task(_answer(job, prompt)) for job, prompt in zip(jobs, prompts, strict=True)]
    try:
        await _watch(waits, worker, console)
    finally:
        await end_tasks(*waits)
    return [wait.result() for wait in waits]


async def _answer(job: AsyncJob, prompt: DemoPrompt) -> DemoAnswer:
    return DemoAnswer(prompt, await job.wait(timeout=_RUN_TIMEOUT))


async def _watch(waits: Sequence[asyncio.Task[DemoAnswer]], worker: Worker, console: Console) -> None:
    """Shows progress until all have ended: one line that moves on a terminal, else a line for every quarter.

    Raises WorkerDied when the worker ends first, and what a wait raised.
    """
    pending: set[asyncio.Task[DemoAnswer]] = set(waits)
    began, told = time.monotonic(), 0
    with console.status("") as status:
        while pending:
            done, pending = await asyncio.wait(pending, timeout=_POLL, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            ended = [wait.result() for wait in waits if wait.done()]
            tokens = sum(answer.result.usage.completion_tokens for answer in ended)
            seconds = time.monotonic() - began
            line = f"{len(ended)}/{len(waits)} finished, {tokens:,} tokens, {seconds:.1f} s"
            status.update(line)
            if not console.is_terminal and 4 * len(ended) // len(waits) > told:
                told = 4 * len(ended) // len(waits)
                console.print(line)
            if pending:
                worker.check("with jobs under way")


async def _last_beats(client: AsyncClient, finished: int) -> list[WorkerInfo]:
    """Heartbeats that count all jobs, or the newest there are when none comes soon."""
    limit = time.monotonic() + _BEAT_TIMEOUT
    while True:
        workers = (await client.queue_stats()).workers
        if sum(worker.finished for worker in workers) >= finished or time.monotonic() > limit:
            return workers
        await asyncio.sleep(_POLL)
