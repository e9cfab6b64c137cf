"""What a worker does when Redis goes away, forgets everything or cannot be used."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from fake_engine import expected_tokens
from millrace.embedded import EmbeddedRedis, free_port
from millrace_schemas import JobState
from queue_probe import QueueProbe
from worker_process import WorkerProcess

SLOW = ("--step", "0.02")


def test_flushall_while_it_waits(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    with WorkerProcess(redis_url, tmp_path) as worker:
        first = probe.submit([1, 2], max_tokens=4)
        probe.wait([first])
        probe.redis.flushall()
        second = probe.submit([3, 4], max_tokens=4)
        assert probe.wait([second])[second].choices[0].token_ids == tuple(expected_tokens([3, 4], 4))
        # A pause between tries, not a hot loop.
        assert worker.log.count("consumer group is gone") < 10
    probe.assert_quiet()


def test_flushall_while_jobs_run(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    with WorkerProcess(redis_url, tmp_path, engine=SLOW):
        gone = probe.submit([1, 2], max_tokens=500)
        probe.wait_for("a checkpoint", lambda: probe.checkpoint(gone) > 0)
        probe.redis.flushall()
        job = probe.submit([3, 4], max_tokens=4)
        probe.wait([job])
    # The flushed job was unknown when it ended: no result of it appears.
    assert probe.result(gone) is None
    assert probe.state(gone) == "missing"
    probe.assert_quiet()


@pytest.mark.parametrize("outage", [0.0, 2.5])
def test_redis_restarts(tmp_path: Path, outage: float) -> None:
    """Kept data, and an outage shorter or longer than the lease: nobody takes over what still runs."""
    with EmbeddedRedis(tmp_path / "redis", durable=True) as server:
        probe = QueueProbe(server.url)
        with WorkerProcess(server.url, tmp_path, engine=SLOW), WorkerProcess(server.url, tmp_path, engine=SLOW):
            jobs = {probe.submit([n, 1], max_tokens=150): [n, 1] for n in range(1, 13)}
            probe.wait_for("checkpoints", lambda: all(probe.checkpoint(job) >= 8 for job in jobs))
            server.stop()
            time.sleep(outage)
            server.start()
            results = probe.wait(jobs)
        for job, prompt in jobs.items():
            assert results[job].choices[0].token_ids == tuple(expected_tokens(prompt, 150))
            assert probe.job(job)["attempts"] == "1"
        probe.assert_quiet()


def test_ends_while_redis_is_away(tmp_path: Path) -> None:
    """SIGTERM during an outage: the worker leaves, and its jobs are there for the next one."""
    with EmbeddedRedis(tmp_path / "redis", durable=True) as server:
        probe = QueueProbe(server.url)
        with WorkerProcess(server.url, tmp_path, engine=SLOW, grace=0.2) as worker:
            job = probe.submit([1, 1], max_tokens=60)
            probe.wait_for("a checkpoint", lambda: probe.checkpoint(job) > 0)
            server.stop()
            worker.signal(signal.SIGTERM)
            assert worker.wait(25) == 0
        server.start()
        with WorkerProcess(server.url, tmp_path):
            assert probe.wait([job])[job].choices[0].token_ids == tuple(expected_tokens([1, 1], 60))


def test_no_redis(tmp_path: Path) -> None:
    port = free_port()
    worker = WorkerProcess(f"redis://:secret@127.0.0.1:{port}/0", tmp_path).start(wait=False)
    assert worker.wait() == 3
    (line,) = worker.log.splitlines()
    assert line.startswith(f"millrace worker: cannot reach Redis at 127.0.0.1:{port}/0")
    assert "secret" not in line


def test_redis_that_comes_late(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis", port=free_port())
    with WorkerProcess(server.url, tmp_path).start(wait=False):
        time.sleep(1.5)
        with server:
            probe = QueueProbe(server.url)
            job = probe.submit([1, 1], max_tokens=4)
            assert probe.wait([job])[job].state is JobState.COMPLETED


def test_wrong_password(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "redis") as server:
        QueueProbe(server.url).redis.config_set("requirepass", "right")
        worker = WorkerProcess(server.url.replace("redis://", "redis://:wrong@"), tmp_path).start(wait=False)
        assert worker.wait(8) == 3
        (line,) = worker.log.splitlines()
        assert "refuses the user or password" in line
        assert "wrong@" not in line
        none = WorkerProcess(server.url, tmp_path).start(wait=False)
        assert none.wait(8) == 3
        assert "refuses the user or password" in none.log


def test_an_engine_that_cannot_start(redis_url: str, tmp_path: Path) -> None:
    worker = WorkerProcess(redis_url, tmp_path, engine=("--fail", "no weights in /models/x")).start(wait=False)
    assert worker.wait() == 4
    assert worker.log.splitlines() == ["millrace worker: no weights in /models/x"]
