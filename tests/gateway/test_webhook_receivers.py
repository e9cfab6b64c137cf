"""Receivers that misbehave."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from backends import until
from fake_worker import FakeWorker
from gateway_server import GatewayServer
from millrace import Client, WebhookRecord
from millrace.gateway.webhook_addresses import Allowed
from millrace.gateway.webhook_settings import WebhookSettings
from receiver import Receiver

IMPATIENT = WebhookSettings(
    allowed=Allowed.of(["127.0.0.1"]), delays=(0.05,), timeout=1.0, lease=15.0, poll=0.5, grace=0.2
)


def settled(client: Client, job_id: str) -> WebhookRecord:
    """The webhook's record, once nothing more will be done about it."""

    def record() -> WebhookRecord:
        found = client.get(job_id).record().webhook
        assert found is not None
        return found

    until(lambda: record().state in ("delivered", "failed"))
    return record()


def slowly(handler: Any) -> None:
    """A byte of a header that never ends, every tenth of a second."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
    for _ in range(100):
        handler.wfile.write(b"a")
        handler.wfile.flush()
        time.sleep(0.1)


def endlessly(handler: Any) -> None:
    """200, and a body for as long as anybody listens."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n")
    while True:
        handler.wfile.write(b"a" * 65536)


def test_bad_receivers(redis_url: str) -> None:
    """All at once: none holds up another."""
    behaviours: dict[str, Any] = {
        "redirect": (302, {"location": "http://127.0.0.1:1/"}),
        "silent": lambda handler: time.sleep(5),
        "slow": slowly,
        "garbage": lambda handler: handler.wfile.write(b"\x00\x01 hello\r\n\r\n"),
        "closes": lambda handler: handler.connection.close(),
        "long header": lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\nx: " + b"a" * 500_000),
        "endless": endlessly,
    }
    with (
        GatewayServer(redis_url, webhooks=IMPATIENT),
        FakeWorker(redis_url),
        Client(redis_url) as client,
        contextlib.ExitStack() as stack,
    ):
        receivers = {name: stack.enter_context(Receiver(behaviour)) for name, behaviour in behaviours.items()}
        jobs = {name: client.submit(name, webhook=receiver.url) for name, receiver in receivers.items()}
        records = {name: settled(client, job.id) for name, job in jobs.items()}
    assert records.pop("endless") == WebhookRecord("delivered", 1, None)
    assert {(record.state, record.attempts) for record in records.values()} == {("failed", 2)}
    errors = {name: record.error or "" for name, record in records.items()}
    assert errors.pop("redirect").startswith("HTTP 302: redirects are not followed")
    assert errors.pop("silent") == errors.pop("slow") == "no answer within 1 s"
    for name, error in errors.items():
        assert error.startswith(("no HTTP answer", "the connection broke")), name
