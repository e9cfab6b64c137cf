"""A bulk file whose parts are killed again and again: no line is lost, none is repeated, and nothing is left behind."""

from __future__ import annotations

import itertools
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from bulk_parts import Batches, BulkProcess, chat_line, outcome, written
from fake_worker import FakeWorker
from millrace_bench.bulk_chaos import Load, run
from millrace_bench.bulk_chaos_parts import children
from millrace_bench.bulk_chaos_plan import Blow, plan

LINES = 1200


def horse_of(process: BulkProcess) -> int | None:
    """The process that has the batch in its hands, if there is one: RQ gives it a process group of its own."""
    for worker in children(process.pid):
        for child in children(worker):
            with suppress(ProcessLookupError):
                if os.getpgid(child) == child:
                    return child
    return None


def test_a_worker_that_slept_through_its_lease_writes_nothing(redis_url: str, batches: Batches, tmp_path: Path) -> None:
    source = written(str(tmp_path / "in.jsonl"), [chat_line(f"r{n}") for n in range(600)])
    with FakeWorker(redis_url, hold=True) as worker, BulkProcess(redis_url, tmp_path) as first:
        batch_id = batches.make(source, str(tmp_path / "out"))
        while not worker.taken:
            time.sleep(0.02)
        sleeper = horse_of(first)
        assert sleeper is not None
        os.kill(sleeper, signal.SIGSTOP)
        worker.release()
        (tmp_path / "second").mkdir()
        with BulkProcess(redis_url, tmp_path / "second"):
            view = batches.ended(batch_id, 30)
        os.kill(sleeper, signal.SIGCONT)
        time.sleep(1)
        assert batches.view(batch_id) == view
    output, errors = outcome(view)
    assert (len(output), len(errors)) == (600, 0)


@pytest.mark.parametrize("seed", [7])
def test_everything_dies(seed: int) -> None:
    """Over HTTP, with real Redis, S3, workers, bulk services and a gateway."""
    load = Load(
        lines=1500, seed=seed, kills_per_minute=120, most_kills=11, rows=16, step=0.03, shards=1, worker_lease=1.0,
        patience=90,
    )  # fmt: skip
    found = run(load)
    assert not found["faults"], found
    assert len(found["blows"]) >= 8, found


def test_a_seed_is_a_plan() -> None:
    first = list(itertools.islice(plan(3, 60), 40))
    assert first == list(itertools.islice(plan(3, 60), 40))
    assert first != list(itertools.islice(plan(4, 60), 40))
    assert {planned.blow for planned in first[:10]} == set(Blow)
