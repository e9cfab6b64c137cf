"""What infra/k8s relies on, tried on processes: what KEDA counts, and what probes ask."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import yaml

from compose_file import ROOT
from fake_worker import register
from millrace.embedded import free_port
from millrace_schemas import GROUP, Lane
from queue_probe import QueueProbe
from worker_process import WorkerProcess

KUBECTL = str(Path(sys.executable).with_name("kubectl"))


def test_a_streams_length_is_what_waits_and_what_runs(redis_url: str, tmp_path: Path) -> None:
    """KEDA asks for it: it must not be 0 while a job waits or runs, and must be 0 after the last one."""
    probe = QueueProbe(redis_url)
    streams = {lane: probe.keys.lanes[lane] for lane in Lane}
    jobs = [probe.submit(max_tokens=40, lane=lane) for lane in Lane for _ in range(6)]
    assert {probe.redis.xlen(stream) for stream in streams.values()} == {6}
    seen = set()
    # Two rows: some run while others wait.
    with WorkerProcess(redis_url, tmp_path, engine=("--step", "0.01", "--rows", "2")):
        limit = time.monotonic() + 60
        while (lengths := [look(probe, stream) for stream in streams.values()]) != [(0, 0)] * 2:
            assert all(length >= pending for length, pending in lengths)
            seen |= {(length > pending, pending > 0) for length, pending in lengths if length}
            assert time.monotonic() < limit
            time.sleep(0.01)
    # Both waiting and running ones; and only running ones, at the end.
    assert {(True, True), (False, True)} <= seen
    assert all(probe.redis.hget(probe.keys.job(job), "state") == b"completed" for job in jobs)


def look(probe: QueueProbe, stream: str) -> tuple[int, int]:
    """Length and pending entries at one moment."""
    pipe = probe.redis.pipeline(transaction=True)
    pipe.xlen(stream)
    pipe.execute_command("XPENDING", stream, GROUP)
    length, pending = pipe.execute(raise_on_error=False)
    # Before a worker has made the group nothing is pending.
    return length, 0 if isinstance(pending, Exception) else pending["pending"]


def gateway_of(overlay: str) -> dict[str, Any]:
    folder = ROOT / "infra" / "k8s" / overlay
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=True)
    found = yaml.safe_load_all(done.stdout)
    (gateway,) = (one for one in found if (one["kind"], one["metadata"]["name"]) == ("Deployment", "gateway"))
    container: dict[str, Any] = gateway["spec"]["template"]["spec"]["containers"][0]
    return container


def test_the_demos_gateway_answers_probes_and_nobody_under_other_names(redis_url: str, tmp_path: Path) -> None:
    register(redis_url)
    container, port = gateway_of("overlays/demo"), free_port()
    arguments = [re.sub("^--port=.*", f"--port={port}", word) for word in container["args"]]
    command = [sys.executable, "-m", *arguments]
    environ = {**os.environ, "MILLRACE_REDIS_URL": redis_url}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, env=environ)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
            limit = time.monotonic() + 20
            while not listens(http):
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < limit
                time.sleep(0.05)
            for name in ("startupProbe", "livenessProbe", "readinessProbe"):
                probe = container[name]["httpGet"]
                headers = {header["name"]: header["value"] for header in probe["httpHeaders"]}
                # No worker runs.
                assert http.get(probe["path"], headers=headers).status_code == 200
            assert http.get("/v1/models", headers={"host": "gateway:8000"}).status_code == 200
            # A probe without that header asks for a pod's address.
            assert http.get("/healthz", headers={"host": "10.1.2.3:8000"}).status_code == 403
    finally:
        process.terminate()
        assert process.wait(20) is not None


def listens(http: httpx2.Client) -> bool:
    try:
        http.get("/healthz")
    except httpx2.TransportError:
        return False
    return True
