from __future__ import annotations

import time

import httpx2
import redis

from fake_worker import FakeWorker
from millrace_schemas import QueueKeys
from scraped import Scraped


def submit(http: httpx2.Client) -> str:
    found: str = http.post("/v1/jobs", json={"prompt": "hello", "lane": "batch"}).json()["id"]
    return found


def test_readiness(http: httpx2.Client, redis_url: str, raw: redis.Redis, keys: QueueKeys) -> None:
    assert http.get("/healthz").json() == {"status": "ok"}
    waiting = http.get("/readyz")
    assert (waiting.status_code, waiting.json()["error"]["code"]) == (503, "no_live_worker")
    with FakeWorker(redis_url):
        http.get(f"/v1/jobs/{submit(http)}?wait=20")
        limit = time.monotonic() + 10
        while (ready := http.get("/readyz")).status_code != 200:
            assert time.monotonic() < limit
        assert ready.json() == {"status": "ready", "models": ["demo"]}
    # As it is when the heartbeat has run out.
    raw.delete(keys.worker("fake"))
    assert http.get("/readyz").status_code == 503


def test_metrics(http: httpx2.Client) -> None:
    job = submit(http)
    submit(http)
    http.get(f"/v1/jobs/{job}")
    http.get("/a-path-of-their-own")
    http.request("METHODOFTHEIROWN", "/v1/jobs")
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    page = Scraped(answer.text)
    assert page.types["millrace_gateway_requests"] == "counter"
    assert page.types["millrace_gateway_request_duration_seconds"] == "histogram"
    assert page.value("millrace_gateway_request_duration_seconds_count", route="/v1/jobs", method="POST") >= 2
    assert page.value("millrace_queue_oldest_waiting_seconds", lane="batch") > 0
    lines = answer.text.splitlines()
    assert 'millrace_queue_waiting{model="demo",lane="batch"} 2' in lines
    assert 'millrace_queue_waiting{model="demo",lane="interactive"} 0' in lines
    assert 'millrace_workers{model="demo"} 0' in lines
    assert "millrace_redis_up 1" in lines
    counted = dict(line.rsplit(" ", 1) for line in lines if line.startswith("millrace_gateway_requests_total"))
    label = 'millrace_gateway_requests_total{{method="{}",route="{}",status="{}"}}'
    assert int(counted[label.format("POST", "/v1/jobs", 202)]) >= 2
    assert int(counted[label.format("GET", "/v1/jobs/{id}", 200)]) >= 1
    assert int(counted[label.format("GET", "other", 404)]) >= 1
    assert job not in answer.text
    assert "a-path-of-their-own" not in answer.text
    assert "METHODOFTHEIROWN" not in answer.text
