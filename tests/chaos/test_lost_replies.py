"""Replies that never arrive: the server has done it, the worker does not know, and nothing happens twice."""

from __future__ import annotations

from pathlib import Path

from dropping_proxy import DroppingProxy
from fake_engine import expected_tokens
from millrace.embedded import EmbeddedRedis
from millrace_schemas import Tokens
from millrace_worker.stream import scripts
from queue_probe import QueueProbe
from worker_process import WorkerProcess


def test_each_reply_may_be_lost(redis_url: str, redis_server: EmbeddedRedis, probe: QueueProbe, tmp_path: Path) -> None:
    every = (scripts.LEASE, scripts.CHECKPOINT, scripts.FINISH, scripts.BEAT, scripts.PROMOTE, scripts.CLAIM)
    with DroppingProxy(redis_server.port) as proxy, WorkerProcess(proxy.url, tmp_path, engine=("--step", "0.02")):
        # Scripts are sent by their hashes once the server knows them.
        probe.wait([probe.submit([9, 9], max_tokens=10)])
        proxy.drop(*(script.sha.encode() for script in every), b"XREADGROUP")
        jobs = {probe.submit([n, 1], max_tokens=60, stream=n % 2 == 0): [n, 1] for n in range(1, 13)}
        results = probe.wait(jobs)
        assert len(proxy.dropped) == 7
    for job, prompt in jobs.items():
        tokens = tuple(expected_tokens(prompt, 60))
        assert results[job].choices[0].token_ids == tokens
        assert results[job].attempts == 1
        events = [e for e in probe.events(job) if isinstance(e, Tokens)]
        if events:
            assert tuple(t for e in events for t in e.token_ids) == tokens
            assert "".join(e.text for e in events) == results[job].text
    probe.assert_quiet()
