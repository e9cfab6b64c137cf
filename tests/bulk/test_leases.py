"""A lease outlives slow writes; whoever loses one all the same leaves nothing behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import redis

from bulk_parts import Batches, BulkThread, chat_line, outcome, written
from fake_worker import FakeWorker
from millrace.bulk.errors import LeaseLost, StorageError
from millrace.bulk.jobs import BatchJobs
from millrace.bulk.keeping import kept
from millrace.bulk.local_storage import LocalStorage
from millrace.bulk.settings import BulkSettings
from millrace.bulk.step import Step
from millrace.bulk.store import BatchStore, Owned
from millrace.bulk.submitting import make_batch
from millrace.connection import Connection
from millrace_schemas import QueueKeys, QueueUnavailable, queue_of
from millrace_schemas.batch import BatchStatus
from millrace_schemas.keys import batch_key

LINES = 40


def test_slow_writes_lose_nothing(
    redis_url: str, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write takes longer than the lease, and a second process is waiting for the first one to lose it."""
    join = LocalStorage.join
    tokens: set[str] = set()

    def slow(storage: LocalStorage, url: str, pieces) -> int:
        tokens.add(url.rpartition("/")[2].split("-")[2] if ".parts/0" in url else "")
        time.sleep(0.8)
        return join(storage, url, pieces)

    monkeypatch.setattr(LocalStorage, "join", slow)
    source = written(str(tmp_path / "in.jsonl"), [chat_line(f"r{n}") for n in range(LINES)])
    settings = BulkSettings(flush_seconds=0.1, turn=30.0, lease=0.5)
    with FakeWorker(redis_url), BulkThread(redis_url, settings), BulkThread(redis_url, settings):
        view = batches.ended(batches.make(source, str(tmp_path / "out")))
    assert view.batch.status is BatchStatus.COMPLETED
    assert len(outcome(view)[0]) == LINES
    # All parts were written by one owner.
    assert len(tokens - {""}) == 1


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


def test_a_fault_in_a_turn_is_told_and_passes(
    redis_url: str, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Step._open
    faults = iter([True])

    async def faulty(step: Step, owned: Owned):
        if next(faults, False):
            raise ZeroDivisionError("no turn")
        return await opened(step, owned)

    monkeypatch.setattr(Step, "_open", faulty)
    source = written(str(tmp_path / "in.jsonl"), [chat_line("a")])
    with FakeWorker(redis_url), BulkThread(redis_url, BulkSettings(pause=1.0)):
        batch_id = batches.make(source, str(tmp_path / "out"))
        limit = time.monotonic() + 20
        while not (problem := batches.view(batch_id).problem):
            assert time.monotonic() < limit
            time.sleep(0.02)
        assert "ZeroDivisionError: no turn" in problem
        view = batches.ended(batch_id)
    assert (view.batch.status, view.problem) == (BatchStatus.COMPLETED, None)


def test_parts_that_cannot_be_removed_are_no_problem_of_the_batch(
    redis_url: str, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def refuse(storage: LocalStorage, prefix: str) -> None:
        tried.append(prefix)
        raise StorageError("no right to remove", code="permission_denied", lasting=True)

    monkeypatch.setattr(LocalStorage, "remove_under", refuse)
    source = written(str(tmp_path / "in.jsonl"), [chat_line("a")])
    with FakeWorker(redis_url), BulkThread(redis_url, BulkSettings(flush_seconds=0.1)):
        view = batches.ended(batches.make(source, str(tmp_path / "out")))
        limit = time.monotonic() + 20
        while not tried:
            assert time.monotonic() < limit
            time.sleep(0.02)
    time.sleep(0.2)
    assert batches.view(view.batch.id).problem is None


def test_lost_rights_are_waited_for(
    redis_url: str, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_ = LocalStorage.open
    refusals = iter([False, True, True])

    def moody(storage: LocalStorage, url: str):
        if next(refusals, False):
            raise StorageError(f"{url}: no right to read it", code="permission_denied", lasting=True)
        return open_(storage, url)

    monkeypatch.setattr(LocalStorage, "open", moody)
    source = written(str(tmp_path / "in.jsonl"), [chat_line("a")])
    with FakeWorker(redis_url), BulkThread(redis_url, BulkSettings(flush_seconds=0.1, pause=0.3)):
        view = batches.ended(batches.make(source, str(tmp_path / "out")))
    assert view.batch.status is BatchStatus.COMPLETED
    assert next(refusals, None) is None


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
