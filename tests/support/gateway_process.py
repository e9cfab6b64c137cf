"""`millrace gateway` as a process, and a question to it whose words are not to be found anywhere else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from millrace.embedded import free_port
from nursery import producer_nursery
from queue_probe import MODEL

TRACE = "0af7651916cd43dd8448eb211c80319c"
SECRET = "kohlrabi"


@contextmanager
def running_gateway(redis_url: str, log: Path, *flags: str) -> Iterator[httpx2.Client]:
    """Its stderr goes to `log`."""
    port = free_port()
    arguments = ["-m", "millrace", "gateway", "--redis-url", redis_url, "--port", str(port), *flags]
    process = producer_nursery.run(arguments, log)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
            limit = time.monotonic() + 20
            while True:
                try:
                    http.get("/healthz")
                    break
                except httpx2.TransportError:
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < limit
                    time.sleep(0.05)
            yield http
    finally:
        process.terminate()
        process.wait(20)


def ask(http: httpx2.Client, **headers: str) -> str:
    """The id of a finished job about SECRET."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": SECRET}], "max_tokens": 5}
    answer = http.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return str(answer.headers["x-request-id"])
