"""Nothing of a batch is left in Redis when it has ended, however it did."""

from __future__ import annotations

import time
from pathlib import Path

import redis

from bulk_parts import Batches, BulkThread, chat_line, outcome, written
from fake_worker import FakeWorker
from millrace.bulk.settings import BulkSettings
from millrace_schemas import QueueKeys, queue_of
from millrace_schemas.batch import BatchError, BatchStatus

KEYS = QueueKeys(queue_of("demo"))
LINES = 10


def wait_for(worker: FakeWorker, jobs: int) -> None:
    limit = time.monotonic() + 20
    while len(worker.taken) < jobs:
        assert time.monotonic() < limit, worker.taken
        time.sleep(0.02)


def test_jobs_that_nobody_waits_for_do_not_count_as_unfinished(
    redis_url: str, batches: Batches, tmp_path: Path, raw: redis.Redis
) -> None:
    """Their worker never ends them, and their batch is over."""
    source = written(str(tmp_path / "in.jsonl"), [chat_line(f"r{n}") for n in range(LINES)])
    settings = BulkSettings(flush_seconds=0.1, ending=0.3)
    with FakeWorker(redis_url, hold=True) as worker, BulkThread(redis_url, settings):
        batch_id = batches.make(source, str(tmp_path / "out"), tenant="acme")
        wait_for(worker, LINES)
        assert raw.zcard(KEYS.unfinished("acme")) == LINES
        batches.do(lambda store: store.cancel(batch_id))
        view = batches.ended(batch_id)
        assert view.batch.status is BatchStatus.CANCELLED
        assert len(outcome(view)[1]) == LINES
        assert not raw.zcard(KEYS.unfinished("acme"))


def test_jobs_of_a_file_that_changed_go(redis_url: str, batches: Batches, tmp_path: Path, raw: redis.Redis) -> None:
    """Those that were made since the last commit, too."""
    source = written(str(tmp_path / "in.jsonl"), [chat_line(f"r{n}") for n in range(LINES)])
    settings = BulkSettings(flush_seconds=60.0, turn=60.0)
    with FakeWorker(redis_url, hold=True) as worker, BulkThread(redis_url, settings):
        batch_id = batches.make(source, str(tmp_path / "out"))
        wait_for(worker, LINES)
        batches.do(lambda store: store.fail(batch_id, BatchError("input_changed", "another process saw it")))
        view = batches.ended(batch_id)
        assert view.batch.status is BatchStatus.FAILED
        assert len(outcome(view)[1]) == LINES
        assert not list(raw.scan_iter(KEYS.job("demo-*")))
