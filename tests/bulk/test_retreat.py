"""A process that slept through its lease and then worked on for a moment: nothing of that stays."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
import redis

from bulk_parts import Batches, chat_line, outcome, written
from fake_worker import FakeWorker
from millrace import AsyncClient
from millrace.bulk.settings import BulkSettings
from millrace.bulk.step import Step
from millrace.bulk.store import BatchStore
from millrace.connection import Connection
from millrace_schemas import QueueKeys, queue_of
from millrace_schemas.batch import BATCH_TERMINAL, BatchStatus

LINES = 600
SETTINGS = BulkSettings(flush_seconds=0.1, window=256, lease=1.0, turn=5.0)


@pytest.mark.parametrize("ended", [False, True], ids=["while another works", "after the end"])
def test_jobs_that_were_made_too_late_go(redis_url: str, batches: Batches, tmp_path: Path, ended: bool) -> None:
    """The sleeper has read lines and is about to make jobs of them; its successor has them all, or all but a few."""
    source = written(str(tmp_path / "in.jsonl"), [chat_line(f"r{n}", f"hello {n}") for n in range(LINES)])
    batch_id = batches.make(source, str(tmp_path / "out"))

    async def sleeper(asleep: asyncio.Event, wake: asyncio.Event) -> None:
        connection = Connection(redis_url)
        async with AsyncClient(redis_url) as client:
            enqueue, calls = client._enqueue, 0

            async def late(submissions):
                nonlocal calls
                calls += 1
                if calls == 1:
                    asleep.set()
                    # Nothing of this process runs meanwhile, the renewal of its lease included.
                    step._store.keep = wait_for_wake  # type: ignore[method-assign]
                    await wake.wait()
                return await enqueue(submissions)

            async def wait_for_wake(owned, lease) -> None:
                await wake.wait()
                # It collects results before it learns.
                await asyncio.sleep(0.4)
                await BatchStore.keep(step._store, owned, lease)

            step = Step(connection, client, SETTINGS)
            client._enqueue = late  # type: ignore[method-assign]
            while not asleep.is_set():
                await step.run(batch_id)
            await step.run(batch_id)
        await connection.close()

    async def successor(asleep: asyncio.Event, wake: asyncio.Event) -> None:
        connection = Connection(redis_url)
        await asleep.wait()
        async with AsyncClient(redis_url) as client:
            step = Step(connection, client, SETTINGS)
            view = await step._store.view(batch_id)
            while view.batch.status not in BATCH_TERMINAL:
                await step.run(batch_id)
                await asyncio.sleep(0.05)
                view = await step._store.view(batch_id)
                if not ended and view.progress.ended > LINES // 2:
                    wake.set()
            wake.set()
        await connection.close()

    async def both() -> None:
        asleep, wake = asyncio.Event(), asyncio.Event()
        await asyncio.gather(sleeper(asleep, wake), successor(asleep, wake))

    with FakeWorker(redis_url) as worker:
        asyncio.run(asyncio.wait_for(both(), 60))
        limit = time.monotonic() + 10
        keys = QueueKeys(queue_of("demo"))
        with redis.Redis.from_url(redis_url) as client:
            while left := [*client.scan_iter(keys.job("demo-*")), *client.scan_iter(keys.result("demo-*"))]:
                assert time.monotonic() < limit, left[:3]
                time.sleep(0.05)
    view = batches.view(batch_id)
    assert view.batch.status is BatchStatus.COMPLETED
    assert len(outcome(view)[0]) == LINES
    assert worker.finished
