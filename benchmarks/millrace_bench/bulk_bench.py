"""`millrace bench bulk`: a file through `millrace bulk`, with a worker that costs nothing and with the demo model."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace import AsyncClient
from millrace.bulk.store import BatchStore, View
from millrace.bulk.submitting import make_batch
from millrace.connection import Connection
from millrace.embedded import EmbeddedRedis
from millrace_schemas.batch import BATCH_TERMINAL, BatchStatus

from .bulk_worker import MODEL
from .process_tree import ProcessTree
from .processes import start, wait_for

_JSON = dict[str, Any]
_POLL = 0.1
#: System prompts of the file, in turn.
_SYSTEMS = 16


@dataclass(frozen=True, slots=True)
class Load:
    """Lines of the large file, and bytes of each; processes of `millrace bulk`."""

    lines: int = 1_000_000
    line_bytes: int = 1000
    processes: int = 1


#: What each figure should be: at least, for rates, and at most for all others.
TARGETS: dict[str, float] = {
    "validated_per_s": 100_000, "lines_per_s": 5_000, "bulk_peak_mib": 512.0, "redis_peak_mib": 512.0,
    "over_submit_many_percent": 5.0, "nothing_beside_ratio": 1.5, "demo_beside_ratio": 1.5,
}  # fmt: skip


def run(load: Load) -> _JSON:
    """All figures of one run. Raises RuntimeError when a part of it fails."""
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as directory, EmbeddedRedis() as server:
        source = Path(directory) / "in.jsonl"
        write_file(source, load)
        worker = start("bulk_worker", server.url)
        try:
            wait_for(worker, "ready")
            with bulk_service(server.url, load.processes) as service, ProcessTree(service.pid) as tree:
                view = asyncio.run(work_off(server.url, source, Path(directory) / "out"))
        finally:
            worker.kill()
            worker.communicate()
        peak = asyncio.run(_ask_redis(server.url))
        _check(view, Path(directory) / "out", load)
        return _figures(view, load) | {
            "file_mb": round(source.stat().st_size / 1e6, 1),
            "bulk_peak_mib": tree.peak_mib,
            "bulk_cpu_us_per_line": round(tree.cpu_seconds / load.lines * 1e6, 1),
            **peak,
        }


def write_file(path: Path, load: Load) -> None:
    """Lines whose system prompts, each of a quarter of a line, come in turn."""
    systems = [f"You answer in style {n}. ".ljust(load.line_bytes // 4, "s") for n in range(_SYSTEMS)]
    with path.open("w") as file:
        for number in range(load.lines):
            messages = [
                {"role": "system", "content": systems[number % _SYSTEMS]},
                {"role": "user", "content": f"question {number} "},
            ]
            body = {"model": MODEL, "max_tokens": 64, "temperature": 0.7, "messages": messages}
            line = {"custom_id": f"request-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            missing = load.line_bytes - len(json.dumps(line)) - 1
            messages[1]["content"] += "q" * max(0, missing)
            file.write(json.dumps(line) + "\n")


@contextmanager
def bulk_service(url: str, processes: int = 1) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "millrace", "bulk", "--redis-url", url, "--workers", str(processes)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


async def work_off(url: str, source: Path, output: Path, **fields: Any) -> View:
    """The batch at its end."""

    async def do(store: BatchStore) -> View:
        batch = make_batch(str(source), str(output), now=await store.now(), **fields)
        await store.create(batch)
        while (view := await store.view(batch.id)).batch.status not in BATCH_TERMINAL:
            if view.problem:
                raise RuntimeError(f"the batch does not move: {view.problem}")
            await asyncio.sleep(_POLL)
        return view

    return await with_store(url, do)


async def with_store(url: str, do: Callable[[BatchStore], Awaitable[View]]) -> View:
    connection = Connection(url)
    try:
        return await do(BatchStore(connection))
    finally:
        await connection.close()


async def _ask_redis(url: str) -> _JSON:
    async with AsyncClient(url) as client:
        assert client._connection is not None
        memory = await client._connection.call(lambda redis: redis.info("memory"))
        cpu = await client._connection.call(lambda redis: redis.info("cpu"))
    seconds = cpu["used_cpu_user"] + cpu["used_cpu_sys"]
    return {"redis_peak_mib": round(memory["used_memory_peak"] / 2**20, 1), "redis_cpu_s": round(seconds, 1)}


def _figures(view: View, load: Load) -> _JSON:
    batch = view.batch
    assert batch.in_progress_at is not None
    assert batch.finalizing_at is not None
    assert batch.completed_at is not None
    validation = batch.in_progress_at - batch.created_at
    middle, end = batch.finalizing_at - batch.in_progress_at, batch.completed_at - batch.finalizing_at
    return {
        "lines": load.lines,
        "processes": load.processes,
        "validated_per_s": round(load.lines / validation),
        "lines_per_s": round(load.lines / middle),
        "validating_s": round(validation, 2),
        "working_s": round(middle, 2),
        "finalizing_s": round(end, 2),
    }


def _check(view: View, output: Path, load: Load) -> None:
    """Raises RuntimeError unless every line has its answer, once."""
    if view.batch.status is not BatchStatus.COMPLETED or view.progress.completed != load.lines:
        raise RuntimeError(f"the batch ended as {view.batch.status} with {view.progress.completed} lines completed")
    seen = bytearray(load.lines)
    with (output / f"{view.batch.id}_output.jsonl").open("rb") as file:
        for line in file:
            start = line.index(b'"custom_id":"request-') + 21
            seen[int(line[start : line.index(b'"', start)])] += 1
    if seen.count(1) != load.lines:
        raise RuntimeError(f"{load.lines - seen.count(1)} lines do not have exactly one answer")
