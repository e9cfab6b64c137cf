"""What a bulk file costs: over handing the same jobs over in Python, and to interactive jobs beside it."""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from millrace import AsyncClient, Sampling
from millrace.bulk.store import View
from millrace.demo_tasks import PROMPT_OF_TASK, make_example, system_prompt
from millrace.demo_worker import MODEL as DEMO
from millrace.demo_worker import DemoWorker
from millrace.embedded import EmbeddedRedis
from millrace_schemas import Lane, UnknownModel
from millrace_schemas.aio import end_tasks
from millrace_schemas.batch import BatchStatus

from .bulk_bench import bulk_service, work_off
from .gateway_worker import MODEL as NOTHING
from .processes import start, wait_for

_JSON = dict[str, Any]
_MAX_TOKENS = 24
#: More than are worked off while somebody looks.
_NOTHING_LINES = 200_000
#: Seconds between two interactive jobs.
_PAUSE = 0.1


def over_submit_many(lines: int, repeats: int) -> _JSON:
    """Seconds of the demo model for the same number of questions, as a file and through submit_many, in turn."""
    rng = random.Random(5)
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as name, EmbeddedRedis() as server:
        directory = Path(name)
        with DemoWorker(server.url, directory / "worker.log") as worker, bulk_service(server.url):
            asyncio.run(_wait_for_model(server.url, worker))
            asyncio.run(_submit_many(server.url, _questions(rng, 64)))
            plain, files = [], []
            for number in range(repeats):
                plain.append(asyncio.run(_submit_many(server.url, _questions(rng, lines))))
                source = _demo_file(directory / f"{number}.jsonl", _questions(rng, lines))
                began = time.monotonic()
                _check(asyncio.run(work_off(server.url, source, directory / "out")), lines)
                files.append(time.monotonic() - began)
    return {
        "demo_lines": lines,
        "submit_many_s": round(min(plain), 2),
        "demo_file_s": round(min(files), 2),
        "over_submit_many_percent": round((min(files) / min(plain) - 1) * 100, 1),
    }


def interactive_beside(seconds: float, lines: int) -> _JSON:
    """Time to the first token of interactive jobs, alone and beside a file, with a worker without a model and with the
    demo model.
    """
    found: _JSON = {}
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as name, EmbeddedRedis() as server:
        directory = Path(name)
        worker = start("gateway_worker", server.url)
        try:
            wait_for(worker, "ready")
            found |= asyncio.run(_beside("nothing", server.url, NOTHING, seconds, _nothing_file(directory)))
        finally:
            worker.terminate()
            worker.communicate()
        with DemoWorker(server.url, directory / "worker.log") as demo:
            asyncio.run(_wait_for_model(server.url, demo))
            source = _demo_file(directory / "demo.jsonl", _questions(random.Random(6), lines))
            found |= asyncio.run(_beside("demo", server.url, DEMO, seconds, source))
    return found


async def _beside(kind: str, url: str, model: str, seconds: float, source: Path) -> _JSON:
    await _first_tokens(url, model, 1.0)
    alone = await _first_tokens(url, model, seconds)
    with bulk_service(url):
        running = asyncio.create_task(work_off(url, source, source.parent / "out"))
        # Once it is under way.
        await asyncio.sleep(3.0)
        beside = await _first_tokens(url, model, seconds)
        if running.done():
            raise RuntimeError(f"the file of {source} ended too soon; give it more lines")
        await end_tasks(running)
    return {
        f"{kind}_ttft_p50_ms": round(_at(alone, 0.5), 2),
        f"{kind}_ttft_p95_ms": round(_at(alone, 0.95), 2),
        f"{kind}_beside_p50_ms": round(_at(beside, 0.5), 2),
        f"{kind}_beside_p95_ms": round(_at(beside, 0.95), 2),
        f"{kind}_beside_ratio": round(_at(beside, 0.95) / _at(alone, 0.95), 2),
    }


async def _first_tokens(url: str, model: str, seconds: float) -> list[float]:
    """Milliseconds from submit to the first event with text, one job after the other at a steady rate."""
    found: list[float] = []
    limit = time.monotonic() + seconds
    async with AsyncClient(url) as client:
        rng = random.Random(7)
        while (began := time.monotonic()) < limit:
            (system, prompt), *_ = _questions(rng, 1)
            job = await client.submit(
                prompt, system=system, model=model, stream=True, sampling=Sampling(max_tokens=4, temperature=0),
                metadata={"tokens": "2"},
            )  # fmt: skip
            async for event in job.events():
                if getattr(event, "text", None):
                    break
            found.append((time.monotonic() - began) * 1000)
            await asyncio.sleep(max(0.0, began + _PAUSE - time.monotonic()))
    return found


async def _submit_many(url: str, questions: list[tuple[str, str]]) -> float:
    sampling = {"max_tokens": _MAX_TOKENS, "temperature": 0}
    requests = [
        {"system": system, "prompt": prompt, "sampling": sampling, "lane": Lane.BATCH, "model": DEMO}
        for system, prompt in questions
    ]
    async with AsyncClient(url) as client:
        began = time.monotonic()
        jobs = await client.submit_many(requests)
        await asyncio.gather(*(job.result() for job in jobs))
        return time.monotonic() - began


async def _wait_for_model(url: str, worker: DemoWorker) -> None:
    async with AsyncClient(url) as client:
        while True:
            with suppress(UnknownModel):
                await client._registry.info(DEMO)
                return
            worker.check("before it served")
            await asyncio.sleep(0.2)


def _questions(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """System prompts and questions of tasks that the demo model knows."""
    found = []
    for number in range(count):
        task = tuple(PROMPT_OF_TASK)[number % len(PROMPT_OF_TASK)]
        found.append((system_prompt(task), make_example(rng, task).user))
    return found


def _demo_file(path: Path, questions: list[tuple[str, str]]) -> Path:
    return _write(path, DEMO, questions)


def _nothing_file(directory: Path) -> Path:
    return _write(directory / "nothing.jsonl", NOTHING, (("Be brief.", f"question {n}") for n in range(_NOTHING_LINES)))


def _write(path: Path, model: str, questions: Iterable[tuple[str, str]]) -> Path:
    with path.open("w") as file:
        for number, (system, prompt) in enumerate(questions):
            messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
            body = {"model": model, "max_tokens": _MAX_TOKENS, "temperature": 0, "messages": messages}
            line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    return path


def _check(view: View, lines: int) -> None:
    if view.batch.status is not BatchStatus.COMPLETED or view.progress.completed != lines:
        raise RuntimeError(f"the batch ended as {view.batch.status} with {view.progress.completed} of {lines} lines")


def _at(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
