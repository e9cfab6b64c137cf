"""A bulk worker as a process, and what a batch left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from millrace import AsyncClient
from millrace.bulk.output import errors_url, output_url
from millrace.bulk.settings import BulkSettings
from millrace.bulk.step import Step
from millrace.bulk.storage import read_all
from millrace.bulk.store import BatchStore, View
from millrace.bulk.submitting import make_batch
from millrace.connection import Connection
from millrace_schemas.batch import BATCH_TERMINAL
from nursery import Forked, producer_nursery

T = TypeVar("T")


class BulkProcess:
    """`millrace bulk`; the flags are such that a death is noticed soon."""

    def __init__(self, url: str, directory: Path, *flags: str):
        self._arguments = [
            *("-m", "millrace", "bulk", "--redis-url", url),
            *(flags or ("--lease", "2", "--flush", "0.3")),
        ]
        self._log = directory / "bulk.log"
        self._process: Forked | None = None

    def start(self) -> BulkProcess:
        # A session of its own: all of its processes can be killed at once.
        self._process = producer_nursery.run(self._arguments, self._log, session=True)
        return self

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """Every process of it, as when the machine is gone."""
        os.killpg(self.pid, signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def stop(self) -> int:
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(30)

    def __enter__(self) -> BulkProcess:
        return self.start()

    def __exit__(self, *error: object) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self.stop()
        if error[0] is not None:
            print(self.log)


class Batches:
    """The batches in one Redis."""

    def __init__(self, url: str):
        self._url = url

    def do(self, what: Callable[[BatchStore], Awaitable[T]]) -> T:
        async def run() -> T:
            connection = Connection(self._url)
            try:
                return await what(BatchStore(connection))
            finally:
                await connection.close()

        return asyncio.run(run())

    def make(self, source: str, output: str, **fields: Any) -> str:
        async def create(store: BatchStore) -> str:
            batch = make_batch(source, output, now=await store.now(), **fields)
            await store.create(batch)
            return batch.id

        return self.do(create)

    def view(self, batch_id: str) -> View:
        return self.do(lambda store: store.view(batch_id))

    def ended(self, batch_id: str, timeout: float = 60.0) -> View:
        limit = time.monotonic() + timeout

        # All looks over one connection: to make one takes longer than to look.
        async def wait(store: BatchStore) -> View:
            while (view := await store.view(batch_id)).batch.status not in BATCH_TERMINAL:
                assert time.monotonic() < limit, view
                await asyncio.sleep(0.03)
            return view

        return self.do(wait)


def chat_line(custom_id: str, text: str = "hello", model: str = "demo", **body: Any) -> str:
    messages = [{"role": "user", "content": text}]
    return json.dumps(
        {
            "custom_id": custom_id,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": model, "messages": messages, **body},
        }
    )


def written(url: str, lines: Iterable[str]) -> str:
    """A file of these lines; its path."""
    Path(url).write_text("".join(line + "\n" for line in lines))
    return url


def lines_of(url: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in b"".join(read_all(url)).splitlines()]


def outcome(view: View) -> tuple[dict[str, Any], dict[str, Any]]:
    """Lines of output and of errors by custom_id; fails when one stands there twice or the counts are wrong."""
    batch, progress = view.batch, view.progress
    output = lines_of(output_url(batch)) if batch.output_file_id else []
    errors = lines_of(errors_url(batch)) if batch.error_file_id else []
    times = Counter(line["custom_id"] for line in output + errors)
    assert not {name: count for name, count in times.items() if count > 1}
    assert (len(output), len(errors)) == (progress.completed, progress.failed)
    usage = [line["response"]["body"]["usage"] for line in output]
    assert sum(found.get("completion_tokens", found.get("output_tokens")) for found in usage) == (
        progress.completion_tokens
    )
    return {line["custom_id"]: line for line in output}, {line["custom_id"]: line for line in errors}


class BulkThread:
    """What RQ runs, without RQ: turns of whatever is due, in a thread of this process."""

    def __init__(self, url: str, settings: BulkSettings):
        self._url, self._settings = url, settings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        connection = Connection(self._url)
        async with AsyncClient(self._url) as client:
            step, store = Step(connection, client, self._settings), BatchStore(connection)
            while not self._stop.is_set():
                for batch_id in await store.due(10, 5.0):
                    await step.run(batch_id)
                await asyncio.sleep(0.02)
        await connection.close()

    def __enter__(self) -> BulkThread:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
