"""What `millrace gateway` and a worker log of a request: who, what and how long, and never a word of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from gateway_process import SECRET, TRACE, ask, running_gateway
from key_maker import KeyMaker
from queue_probe import MODEL
from worker_process import WorkerProcess


def lines_of(text: str, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def test_one_job_in_both_logs(redis_url: str, tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    key = KeyMaker(redis_url)(tenant="acme")
    flags = ("--access-log", "--log-format", "json")
    with WorkerProcess(redis_url, tmp_path) as worker, running_gateway(redis_url, log, *flags) as http:
        traced = ask(http, traceparent=f"00-{TRACE}-b7ad6b7169203331-01", authorization=f"Bearer {key}")
        plain = ask(http, traceparent="00-nonsense")
        assert http.get(f"/v1/jobs/job-of-nobody?secret={SECRET}").status_code in (400, 404)
        limit = time.monotonic() + 10
        while len(lines_of(worker.log, "job ended")) < 2:
            assert time.monotonic() < limit
            time.sleep(0.02)
        ended = {line["job"]: line for line in lines_of(worker.log, "job ended")}
        worker_log = worker.log
    requests = [line for line in lines_of(log.read_text(), "request") if line["route"] != "/healthz"]
    assert [line["status"] for line in requests][:2] == [200, 200]
    first, second, third = requests
    assert first["job"] == traced
    assert (first["method"], first["route"], first["path"]) == ("POST", *["/v1/chat/completions"] * 2)
    assert (first["tenant"], first["trace_id"]) == ("acme", TRACE)
    assert first["seconds"] > 0
    assert "tenant" not in second
    assert "trace_id" not in second
    assert (third["route"], third["path"]) == ("/v1/jobs/{id}", "/v1/jobs/job-of-nobody")
    line = ended[traced]
    assert (line["tenant"], line["trace_id"], line["state"]) == ("acme", TRACE, "completed")
    assert (line["model"], line["lane"], line["attempt"]) == (MODEL, "interactive", 1)
    assert (line["prompt_tokens"], line["tokens"], line["cached"]) == (len(SECRET), 5, 0)
    assert 0 <= line["queued"] <= line["queued"] + line["ttft"] <= line["total"] + 0.001
    assert "trace_id" not in ended[plain]
    for text in (log.read_text(), worker_log):
        assert SECRET not in text
        assert key not in text


def test_failures_have_their_code(redis_url: str, tmp_path: Path) -> None:
    with WorkerProcess(redis_url, tmp_path) as worker, running_gateway(redis_url, tmp_path / "log") as http:
        assert http.post("/v1/jobs", json={"model": MODEL, "prompt": "untokenizable " + SECRET}).status_code == 202
        limit = time.monotonic() + 10
        while not lines_of(worker.log, "job ended"):
            assert time.monotonic() < limit
            time.sleep(0.02)
        (line,) = lines_of(worker.log, "job ended")
    assert (line["state"], line["code"]) == ("failed", "tokenization_failed")
    # Without --access-log.
    assert lines_of((tmp_path / "log").read_text(), "request") == []


@pytest.mark.parametrize("asked", [True, False])
def test_prompts_are_logged_when_asked(redis_url: str, tmp_path: Path, asked: bool) -> None:
    with (
        WorkerProcess(redis_url, tmp_path, log_prompts=asked) as worker,
        running_gateway(redis_url, tmp_path / "log") as http,
    ):
        answer = http.post("/v1/completions", json={"model": MODEL, "prompt": SECRET, "max_tokens": 5}).json()
        limit = time.monotonic() + 10
        while not (found := lines_of(worker.log, "job ended")):
            assert time.monotonic() < limit
            time.sleep(0.02)
    text = answer["choices"][0]["text"]
    assert (found[0].get("prompt"), found[0].get("answer")) == ((SECRET, text) if asked else (None, None))
