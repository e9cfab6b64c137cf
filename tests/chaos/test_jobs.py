"""Whole workers on a real Redis, undisturbed."""

from __future__ import annotations

from pathlib import Path

from fake_engine import expected_tokens
from millrace_schemas import FinishReason, JobState, Lane
from queue_probe import QueueProbe
from worker_process import WorkerProcess


def test_runs_a_job(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    job = probe.submit([1, 2, 3], max_tokens=12, metadata={"order": "17"})
    # An engine that loads for longer than a lease.
    with WorkerProcess(redis_url, tmp_path, engine=("--load", "1.5")) as worker:
        result = probe.wait([job])[job]
        record = probe.job(job)
        assert "heartbeat stops" not in worker.log
    tokens = expected_tokens([1, 2, 3], 12)
    assert result.state is JobState.COMPLETED
    assert result.choices[0].token_ids == tuple(tokens)
    assert result.text == "".join(chr(97 + t % 26) for t in tokens)
    assert result.choices[0].finish_reason is FinishReason.LENGTH
    assert result.usage.prompt_tokens == 3
    assert result.usage.completion_tokens == 12
    assert result.metadata == {"order": "17"}
    assert result.attempts == 1
    assert result.worker == record["worker"]
    assert 0 <= result.timings.queued <= result.timings.total
    assert result.timings.ttft is not None
    assert record["state"] == "completed"
    assert record["attempts"] == "1"
    assert float(record["created_at"]) <= float(record["started_at"]) <= float(record["finished_at"])
    probe.assert_quiet()


def test_two_workers_share_two_hundred_jobs(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    with WorkerProcess(redis_url, tmp_path), WorkerProcess(redis_url, tmp_path):
        lanes = (Lane.INTERACTIVE, Lane.BATCH)
        jobs = {probe.submit([7, n % 500], max_tokens=20, lane=lanes[n % 2]): n for n in range(200)}
        results = probe.wait(jobs)
    for job, n in jobs.items():
        assert results[job].choices[0].token_ids == tuple(expected_tokens([7, n % 500], 20))
        assert results[job].attempts == 1
    assert len({r.worker for r in results.values()}) == 2
    probe.assert_quiet()
