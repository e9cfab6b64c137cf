"""Processes that die, hang or sleep while jobs run: each job still ends once, with the tokens of an undisturbed run."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from fake_engine import HANG, POISON, expected_tokens
from millrace_schemas import ErrorCode, Finished, JobState, Started, Tokens
from queue_probe import QueueProbe
from worker_process import WorkerProcess

SLOW = ("--step", "0.02")


def started(probe: QueueProbe, jobs: list[str], tokens: int = 8) -> bool:
    return all(probe.checkpoint(job) >= tokens for job in jobs)


def assert_right(probe: QueueProbe, jobs: dict[str, list[int]], count: int) -> None:
    results = probe.wait(jobs)
    for job, prompt in jobs.items():
        assert results[job].state is JobState.COMPLETED, results[job]
        assert results[job].choices[0].token_ids == tuple(expected_tokens(prompt, count))


def test_a_killed_front_loses_nothing(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    log = tmp_path / "second.log"
    with WorkerProcess(redis_url, tmp_path, engine=SLOW) as first:
        jobs = {probe.submit([n, 1], max_tokens=60): [n, 1] for n in range(1, 13)}
        probe.wait_for("checkpoints", lambda: started(probe, list(jobs)))
        first.kill()
        reached = {jobs[job][0]: probe.checkpoint(job) for job in jobs}
        with WorkerProcess(redis_url, tmp_path, engine=(*SLOW, "--log", str(log))):
            assert_right(probe, jobs, 60)
    for job in jobs:
        assert probe.job(job)["attempts"] == "2"
    made = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
    for first_id, position in made:
        assert position >= reached[first_id], "tokens of the checkpoint were generated again"
    probe.assert_quiet()


def test_a_killed_engine_costs_no_token(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    with WorkerProcess(redis_url, tmp_path, engine=(*SLOW, "--log", str(log))) as worker:
        jobs = {probe.submit([n, 1], max_tokens=60): [n, 1] for n in range(1, 11)}
        probe.wait_for("checkpoints", lambda: started(probe, list(jobs)))
        os.kill(worker.engine_pid(), signal.SIGKILL)
        assert_right(probe, jobs, 60)
    for job in jobs:
        assert probe.job(job)["attempts"] == "1"
    made = Counter(log.read_text().splitlines())
    # At the kill, at most the one step on its way to the front is made again.
    assert sum(made.values()) - len(made) <= len(jobs) * 2
    probe.assert_quiet()


def test_poison_is_quarantined_and_its_neighbours_finish(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    with WorkerProcess(redis_url, tmp_path, engine=SLOW) as worker:
        jobs = {probe.submit([n, 1], max_tokens=40): [n, 1] for n in range(1, 9)}
        probe.wait_for("checkpoints", lambda: started(probe, list(jobs), 4))
        poison = probe.submit([POISON], max_tokens=4)
        assert_right(probe, jobs, 40)
        result = probe.wait([poison])[poison]
        after = probe.submit([3, 4], max_tokens=5)
        assert_right(probe, {after: [3, 4]}, 5)
        assert worker.stop() == 0
    assert result.state is JobState.FAILED
    assert result.error is not None
    assert result.error.code is ErrorCode.TOO_MANY_ATTEMPTS
    assert "exit code 9" in result.error.message
    (letter,) = probe.dead()
    assert letter["job"] == poison
    assert letter["code"] == "too_many_attempts"
    probe.assert_quiet()


def test_a_job_that_kills_whole_workers_is_quarantined(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    job = probe.submit([5, 5], max_tokens=4000)
    for attempt in (1, 2):
        with WorkerProcess(redis_url, tmp_path, engine=SLOW, max_attempts=2) as worker:
            probe.wait_for("a lease", lambda n=attempt: probe.job(job)["attempts"] == str(n))
            worker.kill()
    with WorkerProcess(redis_url, tmp_path, engine=SLOW, max_attempts=2):
        result = probe.wait([job])[job]
    assert result.error is not None
    assert result.error.code is ErrorCode.TOO_MANY_ATTEMPTS
    assert result.attempts == 2
    assert [letter["job"] for letter in probe.dead()] == [job]
    probe.assert_quiet()


def test_a_hanging_engine_is_replaced(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    with WorkerProcess(redis_url, tmp_path, engine=SLOW, engine_timeout=1.5):
        jobs = {probe.submit([n, 1], max_tokens=40): [n, 1] for n in range(1, 5)}
        probe.wait_for("checkpoints", lambda: started(probe, list(jobs), 4))
        hang = probe.submit([HANG], max_tokens=4)
        assert_right(probe, jobs, 40)
        result = probe.wait([hang])[hang]
    assert result.error is not None
    assert result.error.code is ErrorCode.TOO_MANY_ATTEMPTS
    assert "said nothing" in result.error.message
    probe.assert_quiet()


def test_a_zombie_writes_nothing(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    with WorkerProcess(redis_url, tmp_path, engine=SLOW) as zombie:
        jobs = {probe.submit([n, 1], max_tokens=40): [n, 1] for n in range(1, 7)}
        probe.wait_for("checkpoints", lambda: started(probe, list(jobs)))
        zombie.signal(signal.SIGSTOP)
        with WorkerProcess(redis_url, tmp_path, engine=SLOW) as second:
            time.sleep(3)
            assert_right(probe, jobs, 40)
            before = {job: probe.redis.get(probe.keys.result(job)) for job in jobs}
            zombie.signal(signal.SIGCONT)
            probe.wait_for("the zombie's loss", lambda: zombie.log.count("lost the lease") == len(jobs))
            time.sleep(0.5)
            assert second.log.count("lost the lease") == 0
        after = probe.submit([3, 4], max_tokens=5)
        assert_right(probe, {after: [3, 4]}, 5)
    for job in jobs:
        assert probe.redis.get(probe.keys.result(job)) == before[job]
        assert probe.job(job)["attempts"] == "2"
    probe.assert_quiet()


def test_long_jobs_keep_their_lease(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    """Many leases long, and nobody takes them over."""
    with WorkerProcess(redis_url, tmp_path, engine=("--step", "0.05")), WorkerProcess(redis_url, tmp_path):
        jobs = {probe.submit([n, 1], max_tokens=80): [n, 1] for n in range(1, 7)}
        assert_right(probe, jobs, 80)
    assert {probe.job(job)["attempts"] for job in jobs} == {"1"}


def test_drain_hands_over_at_once(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    # A lease that nobody could wait for: the second worker gets the jobs because they are handed to it.
    settings = {"lease": 60.0, "engine": SLOW}
    with WorkerProcess(redis_url, tmp_path, grace=0.2, **settings) as first:
        jobs = {probe.submit([n, 1], max_tokens=80): [n, 1] for n in range(1, 9)}
        probe.wait_for("checkpoints", lambda: started(probe, list(jobs)))
        with WorkerProcess(redis_url, tmp_path, **settings) as second:
            assert first.stop() == 0
            assert_right(probe, jobs, 80)
            assert second.stop() == 0
    assert {probe.job(job)["attempts"] for job in jobs} == {"1"}
    assert probe.workers() == []
    names = {c["name"] for lane in probe.keys.lanes.values() for c in probe.redis.xinfo_consumers(lane, "workers")}
    assert names <= {b"handed-over"}
    probe.assert_quiet()


def test_drain_lets_short_jobs_finish(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    with WorkerProcess(redis_url, tmp_path, engine=SLOW) as worker:
        jobs = {probe.submit([n, 1], max_tokens=40): [n, 1] for n in range(1, 5)}
        probe.wait_for("leases", lambda: all(probe.state(job) == "in_progress" for job in jobs))
        worker.signal(signal.SIGTERM)
        probe.wait_for("the drain", lambda: '"draining"' in worker.log)
        # A read that was under way may still bring a job; it goes back, and what comes later is not read.
        late = probe.submit([9, 9], max_tokens=4)
        assert worker.wait() == 0
        assert_right(probe, jobs, 40)
        assert probe.state(late) == "queued"
    with WorkerProcess(redis_url, tmp_path):
        assert_right(probe, {late: [9, 9]}, 4)
    probe.assert_quiet()


def test_a_second_signal_leaves_at_once(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    with WorkerProcess(redis_url, tmp_path, engine=SLOW, grace=60.0) as worker:
        job = probe.submit([1, 1], max_tokens=100)
        probe.wait_for("a checkpoint", lambda: started(probe, [job]))
        worker.signal(signal.SIGINT)
        probe.wait_for("the drain", lambda: "draining" in worker.log)
        worker.signal(signal.SIGINT)
        assert worker.wait(5) == 128 + signal.SIGINT
    with WorkerProcess(redis_url, tmp_path):
        assert_right(probe, {job: [1, 1]}, 100)
    probe.assert_quiet()


@pytest.mark.parametrize("victim", ["front", "engine"])
def test_a_streamed_answer_has_no_seam(redis_url: str, probe: QueueProbe, tmp_path: Path, victim: str) -> None:
    with WorkerProcess(redis_url, tmp_path, engine=SLOW) as first:
        job = probe.submit([4, 2], max_tokens=60, stream=True)
        probe.wait_for("a checkpoint", lambda: started(probe, [job]))
        if victim == "front":
            first.kill()
            first.start()
        else:
            os.kill(first.engine_pid(), signal.SIGKILL)
        result = probe.wait([job])[job]
    events = probe.events(job)
    starts = [e for e in events if isinstance(e, Started)]
    tokens = [e for e in events if isinstance(e, Tokens)]
    assert [s.attempt for s in starts] == ([1, 2] if victim == "front" else [1])
    position = 0
    for event in tokens:
        assert event.start == position
        position += len(event.token_ids)
    assert [t for e in tokens for t in e.token_ids] == expected_tokens([4, 2], 60)
    assert "".join(e.text for e in tokens) == result.text
    assert isinstance(events[-1], Finished)
    assert events[-1].result == result
    probe.assert_quiet()
