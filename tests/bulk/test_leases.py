"""Whoever loses a lease learns of it and leaves nothing behind. See also test_faulty_storage.py."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
import redis

from bulk_parts import Batches, BulkThread, chat_line, outcome, written
from fake_worker import FakeWorker
from millrace.bulk.errors import LeaseLost
from millrace.bulk.jobs import BatchJobs
from millrace.bulk.keeping import kept
from millrace.bulk.local_storage import LocalStorage
from millrace.bulk.settings import BulkSettings
from millrace.bulk.store import BatchStore, Owned
from millrace.bulk.submitting import make_batch
from millrace.connection import Connection
from millrace_schemas import QueueKeys, QueueUnavailable, queue_of
from millrace_schemas.batch import BatchStatus
from millrace_schemas.keys import batch_key

LINES = 40


def test_an_owner_learns_that_it_is_none_any_more(redis_url: str) -> None:
    async def run() -> Owned:
        connection = Connection(redis_url)
        store = BatchStore(connection)
        batch = make_batch("/nowhere/in.jsonl", "/nowhere", now=await store.now())
        await store.create(batch)
        owned = await store.take(batch.id, 0.05)
        assert owned is not None
        await asyncio.sleep(0.1)
        assert await store.take(batch.id, 30.0) is not None
        async with kept(store, owned, 0.3):
            await asyncio.sleep(0.4)
        with pytest.raises(LeaseLost):
            await store.move(owned, owned.batch)
        await connection.close()
        return owned

    assert asyncio.run(run()).is_lost


def test_a_part_that_came_too_late_is_removed(
    redis_url: str, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is taken away between the write of a part and its commit."""
    commit = BatchStore.commit
    late: list[str] = []

    async def too_late(store: BatchStore, owned: Owned, progress, counts, output=None, *others) -> None:
        if output is not None and not late:
            late.append(output.name)
            with redis.Redis.from_url(redis_url) as client:
                taken = {f"owner{owned.name}": "another", f"lease{owned.name}": "0"}
                client.hset(batch_key(owned.batch.id), mapping=taken)
        await commit(store, owned, progress, counts, output, *others)

    monkeypatch.setattr(BatchStore, "commit", too_late)
    removed: list[str] = []
    remove = LocalStorage.remove
    monkeypatch.setattr(
        LocalStorage, "remove", lambda storage, url: (removed.append(url.rpartition("/")[2]), remove(storage, url))
    )
    source = written(str(tmp_path / "in.jsonl"), [chat_line(f"r{n}") for n in range(LINES)])
    settings = BulkSettings(flush_seconds=0.1, lease=2.0)
    with FakeWorker(redis_url), BulkThread(redis_url, settings):
        view = batches.ended(batches.make(source, str(tmp_path / "out")))
    assert view.batch.status is BatchStatus.COMPLETED
    assert len(outcome(view)[0]) == LINES
    assert late == removed


def test_jobs_that_a_predecessor_left_go(
    redis_url: str, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It died after each of its commits, before the jobs behind it were gone."""
    forget = BatchJobs.forget
    deaths = iter([True, True])

    async def dying(jobs: BatchJobs, ids: Sequence[str]) -> None:
        if ids and next(deaths, False):
            raise QueueUnavailable("it dies")
        await forget(jobs, ids)

    monkeypatch.setattr(BatchJobs, "forget", dying)
    source = written(str(tmp_path / "in.jsonl"), [chat_line(f"r{n}") for n in range(LINES)])
    with FakeWorker(redis_url), BulkThread(redis_url, BulkSettings(flush_seconds=0.1, pause=0.1)):
        view = batches.ended(batches.make(source, str(tmp_path / "out")))
    assert len(outcome(view)[0]) == LINES
    assert next(deaths, None) is None
    keys = QueueKeys(queue_of("demo"))
    with redis.Redis.from_url(redis_url) as client:
        assert not list(client.scan_iter(keys.job("demo-*")))
        assert not list(client.scan_iter(keys.result("demo-*")))
