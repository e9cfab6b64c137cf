"""A bulk worker that is killed again and again: no line is lost, none is repeated, and none is asked for twice."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from bulk_parts import Batches, BulkProcess, chat_line, outcome, written
from fake_worker import FakeWorker
from millrace_schemas.batch import BATCH_TERMINAL, BatchStatus

LINES = 2000


def horse_of(process: BulkProcess) -> int | None:
    """The process that has the batch in its hands, if there is one."""
    found = None
    for worker in children(process.pid):
        for child in children(worker):
            with suppress(OSError):
                if b"spawn" not in Path(f"/proc/{child}/cmdline").read_bytes():
                    found = child
    return found


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@pytest.mark.parametrize("seed", [1])
def test_kills_at_random(redis_url: str, batches: Batches, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    source = written(str(tmp_path / "in.jsonl"), [chat_line(f"r{n}", f"hello {n}") for n in range(LINES)])
    process = BulkProcess(redis_url, tmp_path, "--lease", "2", "--flush", "0.1", "--window", "32")
    limit = time.monotonic() + 60
    kills = 0
    with FakeWorker(redis_url) as worker, process:
        batch_id = batches.make(source, str(tmp_path / "out"))
        while batches.view(batch_id).batch.status not in BATCH_TERMINAL:
            assert time.monotonic() < limit, batches.view(batch_id)
            done = batches.view(batch_id).progress.ended
            time.sleep(rng.uniform(0.0, 0.3))
            # A kill before anything was done shows nothing, and costs as much.
            if kills >= 4 or batches.view(batch_id).progress.ended == done:
                continue
            kills += 1
            if rng.random() < 0.5 and (horse := horse_of(process)):
                with suppress(ProcessLookupError):
                    os.kill(horse, signal.SIGKILL)
            else:
                process.kill()
                process.start()
        view = batches.view(batch_id)
    assert kills >= 2
    assert view.batch.status is BatchStatus.COMPLETED
    output, errors = outcome(view)
    assert set(output) == {f"r{n}" for n in range(LINES)}
    assert not errors
    for name, line in output.items():
        assert line["response"]["body"]["choices"][0]["message"]["content"] == f"HELLO {name[1:]}"
    # A successor finds the jobs of its predecessor by their ids.
    assert max(Counter(worker.finished).values()) == 1
    assert len(worker.finished) == LINES


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
