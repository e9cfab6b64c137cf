"""The metrics of worker processes, whose engine is a fake, through their port."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from fake_engine import BLOCK, POISON
from millrace import Client, JobFailed, Request, Sampling
from millrace_schemas import Lane
from queue_probe import MODEL
from scraped import Scraped
from worker_process import WorkerProcess


def url_of(worker: WorkerProcess) -> str:
    (line,) = [line for line in worker.log.splitlines() if '"event": "metrics"' in line]
    url: str = json.loads(line)["url"]
    return url


def scrape(worker: WorkerProcess) -> Scraped:
    with urllib.request.urlopen(url_of(worker), timeout=5) as answer:
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        return Scraped(answer.read().decode())


def until(worker: WorkerProcess, holds: Callable[[Scraped], bool]) -> Scraped:
    limit = time.monotonic() + 15
    while not holds(found := scrape(worker)):
        assert time.monotonic() < limit
        time.sleep(0.05)
    return found


def request(first: int, count: int = 10, lane: Lane = Lane.INTERACTIVE) -> Request:
    return Request(model=MODEL, prompt_token_ids=(first, 2, 3), sampling=Sampling(max_tokens=count), lane=lane)


def until_registered(client: Client) -> None:
    """A worker serves a moment before its heartbeat has registered the model."""
    limit = time.monotonic() + 15
    while not client.models():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_counters_move_with_jobs(redis_url: str, tmp_path: Path) -> None:
    with WorkerProcess(redis_url, tmp_path, metrics_port=0) as worker, Client(redis_url, model=MODEL) as client:
        idle = scrape(worker)
        assert idle.value("millrace_worker_ready", model=MODEL) == 1
        assert idle.value("millrace_kv_cache_blocks") == 1000
        assert idle.value("millrace_jobs_finished_total") == 0
        until_registered(client)
        jobs = client.submit_many([request(i) for i in range(1, 21)] + [request(i, lane=Lane.BATCH) for i in range(5)])
        for job in jobs:
            job.result(timeout=20)
        # A result can be read a moment before its worker knows that it is written.
        found = until(worker, lambda page: page.value("millrace_jobs_finished_total") == 25)
    assert found.value("millrace_jobs_finished_total", lane="interactive", state="completed", code="") == 20
    assert found.value("millrace_jobs_finished_total") == found.value("millrace_leased_total") == 25
    assert found.value("millrace_generation_tokens_total") == 250
    assert found.value("millrace_prompt_tokens_total") == found.value("millrace_prefix_cache_queries_total") == 75
    assert found.value("millrace_inter_token_latency_seconds_count") == 25 * 9
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time"):
        assert found.value(f"millrace_{name}_seconds_count", lane="interactive") == 20
        assert found.value(f"millrace_{name}_seconds_count", lane="batch") == 5
    assert found.value("millrace_e2e_request_latency_seconds_sum") > found.value(
        "millrace_time_to_first_token_seconds_sum"
    )
    # Nothing runs any more, whatever the engine's last frame said.
    assert found.value("millrace_num_requests_running") == found.value("millrace_num_requests_waiting") == 0
    assert found.value("millrace_kv_cache_usage_ratio") == found.value("millrace_leases") == 0
    # No series for each job or each worker, but for the one that names it.
    assert sum(len(family.samples) for family in found.families.values()) < 350


def test_steps_that_read_a_beginning_once(redis_url: str, tmp_path: Path) -> None:
    """Five sequences behind one block, and others, for which there is nothing to share."""
    with WorkerProcess(redis_url, tmp_path, metrics_port=0) as worker, Client(redis_url, model=MODEL) as client:
        until_registered(client)
        before = scrape(worker)
        head = tuple(range(1, BLOCK + 1))
        asked = [Request(model=MODEL, prompt_token_ids=(*head, i), sampling=Sampling(max_tokens=200)) for i in range(5)]
        for job in client.submit_many([*asked, *(request(i) for i in range(7))]):
            job.result(timeout=20)
        found = until(worker, lambda page: page.value("millrace_jobs_finished_total") == 12)
        limit = time.monotonic() + 20
        while not (beats := client.queue_stats().workers) or beats[0].finished < 12:
            assert time.monotonic() < limit
            time.sleep(0.05)
    kinds = ("read", "saved")
    assert [before.value("millrace_shared_decode_tokens_total", kind=kind) for kind in kinds] == [0, 0]
    steps = found.value("millrace_shared_decode_steps_total")
    assert 0 < steps <= found.value("millrace_step_seconds_count")
    read, saved = (found.value("millrace_shared_decode_tokens_total", kind=kind) for kind in kinds)
    assert read == steps * BLOCK
    # Four or all five of them.
    assert 3 * read <= saved <= 4 * read
    assert (beats[0].shared_steps, beats[0].steps) == (steps, found.value("millrace_step_seconds_count"))


def test_pins_by_tier(redis_url: str, tmp_path: Path) -> None:
    def pins(page: Scraped, tier: str) -> float:
        return page.value("millrace_pinned_prefixes", tier=tier)

    engine = ("--pin-delay", "0.5")
    with WorkerProcess(redis_url, tmp_path, metrics_port=0, engine=engine) as worker:
        assert pins(scrape(worker), "gpu") == pins(scrape(worker), "none") == 0
        with Client(redis_url, model=MODEL) as client:
            until_registered(client)
            client.submit(prompt_token_ids=[5] * 16, sampling={"max_tokens": 2}, cache="pin").result(timeout=20)
        until(worker, lambda page: pins(page, "none") == 1)
        found = until(worker, lambda page: pins(page, "gpu") == 1)
        assert pins(found, "none") == pins(found, "disk") == 0


def test_a_worker_is_not_ready_before_its_pins(redis_url: str, tmp_path: Path) -> None:
    with WorkerProcess(redis_url, tmp_path) as worker, Client(redis_url, model=MODEL) as client:
        until_registered(client)
        client.submit(prompt_token_ids=[5] * 16, sampling={"max_tokens": 2}, cache="pin").result(timeout=20)
    worker = WorkerProcess(redis_url, tmp_path, metrics_port=0, engine=("--pin-delay", "1.5")).start(wait=False)
    with worker:
        limit = time.monotonic() + 20
        while "waiting for pinned prefixes" not in worker.log:
            assert time.monotonic() < limit
            time.sleep(0.02)
        base = url_of(worker).removesuffix("/metrics")
        with pytest.raises(urllib.error.HTTPError, match="503") as refused:
            urllib.request.urlopen(base + "/readyz", timeout=5)
        refused.value.close()
        until(worker, lambda page: page.value("millrace_worker_ready") == 1)
        assert "pinned prefixes" in worker.log


def test_what_runs_and_what_waits(redis_url: str, tmp_path: Path) -> None:
    slow = ("--step", "0.05", "--rows", "2")
    with WorkerProcess(redis_url, tmp_path, metrics_port=0, engine=slow) as worker, Client(redis_url) as client:
        until_registered(client)
        jobs = client.submit_many([request(i, 200) for i in range(1, 7)])
        found = until(worker, lambda page: page.value("millrace_num_requests_running") == 2)
        assert found.value("millrace_leases") == 6
        assert found.value("millrace_num_requests_waiting") == 4
        assert found.value("millrace_kv_cache_usage_ratio") == pytest.approx(0.002)
        for job in jobs:
            job.cancel()
        until(worker, lambda page: page.value("millrace_jobs_finished_total", state="cancelled", code="cancelled") == 6)


def test_failures_count(redis_url: str, tmp_path: Path) -> None:
    with (
        WorkerProcess(redis_url, tmp_path, metrics_port=0, max_attempts=1) as worker,
        Client(redis_url, model=MODEL) as client,
    ):
        until_registered(client)
        with pytest.raises(JobFailed):
            client.submit_many([request(POISON)])[0].result(timeout=20)
        found = until(
            worker, lambda page: page.value("millrace_worker_ready") == 1 == page.value("millrace_dead_total")
        )
    assert found.value("millrace_engine_restarts_total") == 1
    assert found.value("millrace_dead_total") == 1
    assert found.value("millrace_jobs_finished_total", state="failed", code="too_many_attempts") == 1
    assert found.value("millrace_e2e_request_latency_seconds_count") == 0


def test_a_job_taken_over_is_a_redelivery(redis_url: str, tmp_path: Path) -> None:
    with Client(redis_url) as client, WorkerProcess(redis_url, tmp_path, engine=("--step", "0.05")) as first:
        until_registered(client)
        (job,) = client.submit_many([request(1, 100)])
        limit = time.monotonic() + 10
        while job.record().state != "in_progress":
            assert time.monotonic() < limit
        first.kill()
        with WorkerProcess(redis_url, tmp_path, metrics_port=0) as heir:
            job.result(timeout=20)
            found = until(heir, lambda page: page.value("millrace_jobs_finished_total") == 1)
    assert found.value("millrace_redeliveries_total", lane="interactive") == found.value("millrace_leased_total") == 1
    # Where the first token came is not known here.
    assert found.value("millrace_time_to_first_token_seconds_count") == 0
    assert found.value("millrace_e2e_request_latency_seconds_count") == 1


def test_health_and_readiness(redis_url: str, tmp_path: Path) -> None:
    worker = WorkerProcess(redis_url, tmp_path, metrics_port=0, engine=("--load", "2"))
    with worker.start(wait=False):
        limit = time.monotonic() + 15
        while '"event": "metrics"' not in worker.log:
            assert time.monotonic() < limit, worker.log
            time.sleep(0.02)
        base = url_of(worker).removesuffix("/metrics")
        assert scrape(worker).value("millrace_worker_ready") == 0
        assert urllib.request.urlopen(base + "/healthz", timeout=5).status == 200
        with pytest.raises(urllib.error.HTTPError, match="503") as refused:
            urllib.request.urlopen(base + "/readyz", timeout=5)
        refused.value.close()
        until(worker, lambda page: page.value("millrace_worker_ready") == 1)
        assert urllib.request.urlopen(base + "/readyz", timeout=5).status == 200
        # Nobody who speaks badly harms it.
        host, port = base.removeprefix("http://").split(":")
        for said in (b"", b"nonsense\r\n\r\n", b"GET /" + b"x" * 100_000, b"POST /metrics HTTP/1.1\r\n\r\n"):
            with socket.create_connection((host, int(port)), timeout=5) as sock:
                sock.sendall(said)
        connection = http.client.HTTPConnection(host, int(port), timeout=5)
        connection.request("HEAD", "/healthz")
        assert connection.getresponse().read() == b""
        connection.close()
        assert "Traceback" not in worker.log
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.wait() == 0


def test_a_port_that_is_taken_is_one_line(redis_url: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        worker = WorkerProcess(redis_url, tmp_path, metrics_port=port).start(wait=False)
        assert worker.wait() == 2
    assert worker.log.splitlines()[-1] == (
        f"millrace worker: cannot serve metrics on 127.0.0.1:{port}: Address already in use"
    )
