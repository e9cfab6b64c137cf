"""Worker, client, gateway and bulk service over a Unix socket and over TLS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from bulk_parts import Batches, BulkProcess, outcome, written
from gateway_process import running_gateway
from millrace import Client, Sampling
from millrace.embedded import EmbeddedRedis
from millrace_schemas.batch import BatchStatus
from queue_probe import MODEL
from transports import redis_behind_tls, redis_on_a_socket
from worker_process import WorkerProcess

BODY = {"model": MODEL, "prompt": "hello", "max_tokens": 3}


@pytest.fixture(params=["unix", "rediss"])
def url(request: pytest.FixtureRequest, redis_server: EmbeddedRedis, redis_url: str) -> Iterator[str]:
    with redis_on_a_socket() if request.param == "unix" else redis_behind_tls(redis_server) as made:
        assert made.startswith(f"{request.param}://")
        yield made


def test_every_part_speaks_it(url: str, tmp_path: Path) -> None:
    line = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": BODY})
    source = written(str(tmp_path / "in.jsonl"), [line])
    with WorkerProcess(url, tmp_path) as worker, BulkProcess(url, tmp_path):
        with Client(url, MODEL) as client:
            job = client.submit(prompt="hello", sampling=Sampling(max_tokens=3), stream=True)
            events = list(job.events())
            assert events
            assert len(job.result(timeout=20).choices[0].token_ids) == 3
        with running_gateway(url, tmp_path / "gateway.log") as http:
            answer = http.post("/v1/completions", json=BODY)
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] == 3
        batches = Batches(url)
        view = batches.ended(batches.make(source, str(tmp_path / "out")))
        assert view.batch.status is BatchStatus.COMPLETED, view
        assert set(outcome(view)[0]) == {"a"}
        assert worker.stop() == 0
    with redis.Redis.from_url(url) as client_of_1:
        # All of it is in the database that the URL names.
        assert client_of_1.keys("*")
