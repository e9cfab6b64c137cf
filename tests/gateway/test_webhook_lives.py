"""Gateways that die, stop or share, and a Redis that goes away: nothing is lost, and nothing is told twice at once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from backends import until
from fake_worker import FakeWorker, register
from gateway_server import GatewayServer
from millrace import Client
from millrace.embedded import EmbeddedRedis
from millrace.gateway.webhook_addresses import Allowed
from millrace.gateway.webhook_settings import WebhookSettings
from millrace.webhooks.outbox import Claims, Outbox
from millrace_schemas import QueueKeys
from receiver import Receiver

HERE = Allowed.of(["127.0.0.1"])
_SCRIPT = Path(__file__).parents[1] / "support" / "run_gateway.py"


@contextmanager
def gateway_process(redis_url: str, **settings: float) -> Iterator[subprocess.Popen[str]]:
    chosen = [f"{name}={value}" for name, value in settings.items()]
    process = subprocess.Popen(
        [sys.executable, str(_SCRIPT), redis_url, *chosen],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("http")
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with FakeWorker(redis_url), Client(redis_url) as client:
        yield client


def delivered(client: Client, job_id: str) -> bool:
    webhook = client.get(job_id).record().webhook
    return webhook is not None and webhook.state == "delivered"


def test_a_gateway_is_killed_in_a_call(client: Client, redis_url: str) -> None:
    """Another one delivers when the lease is over, and not before."""
    settings = WebhookSettings(allowed=HERE, timeout=1.0, lease=2.0, poll=0.2)
    with (
        Receiver(lambda handler: time.sleep(5), 200) as receiver,
        gateway_process(redis_url, timeout=1.0, lease=2.0) as process,
    ):
        job = client.submit("a", webhook=receiver.url)
        (first,) = receiver.wait()
        with GatewayServer(redis_url, webhooks=settings):
            process.send_signal(signal.SIGKILL)
            second = receiver.wait(2)[1]
            until(lambda: delivered(client, job.id))
    assert second.at - first.at > 1.0
    assert second.headers["webhook-id"] == first.headers["webhook-id"]
    assert len(receiver.calls) == 2
    webhook = client.get(job.id).record().webhook
    assert webhook is not None
    assert webhook.attempts == 2


def test_a_gateway_that_stops_gives_back_what_it_holds(client: Client, redis_url: str) -> None:
    """Others need not wait for the end of the lease, which is long here."""
    settings = WebhookSettings(allowed=HERE, grace=0.1, lease=600.0)
    with Receiver(lambda handler: time.sleep(5), 200) as receiver:
        with gateway_process(redis_url, grace=0.1, lease=600.0) as process:
            job = client.submit("a", webhook=receiver.url)
            receiver.wait()
            process.terminate()
            assert process.wait(20) == -signal.SIGTERM
        record = client.get(job.id).record().webhook
        assert record is not None
        assert (record.state, record.attempts) == ("pending", 0)
        with GatewayServer(redis_url, webhooks=settings):
            receiver.wait(2)
            until(lambda: delivered(client, job.id))


def test_a_gateway_that_stops_gives_back_what_it_is_about_to_get(
    client: Client, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = Outbox.claim
    taken = threading.Event()

    async def late(outbox: Outbox, *args: Any) -> Claims:
        claims = await claim(outbox, *args)
        if claims.taken:
            taken.set()
            await asyncio.sleep(0.5)
        return claims

    monkeypatch.setattr(Outbox, "claim", late)
    with GatewayServer(redis_url, webhooks=WebhookSettings(allowed=HERE)):
        job = client.submit("a", webhook="http://127.0.0.1:1/never")
        assert taken.wait(10)
    webhook = job.record().webhook
    assert webhook is not None
    assert (webhook.state, webhook.attempts) == ("pending", 0)


def test_a_gateway_that_stops_waits_for_quick_receivers(client: Client, redis_url: str) -> None:
    with Receiver(lambda handler: (time.sleep(0.5), handler.send_response(200), handler.end_headers())) as receiver:
        with GatewayServer(redis_url, webhooks=WebhookSettings(allowed=HERE, lease=600.0)):
            job = client.submit("a", webhook=receiver.url)
            receiver.wait()
        assert delivered(client, job.id)
    assert len(receiver.calls) == 1


def test_what_ended_before_there_was_a_gateway(client: Client, redis_url: str, raw: redis.Redis) -> None:
    """Also when no worker serves the queue any more."""
    with Receiver() as receiver:
        job = client.submit("a", webhook=receiver.url)
        job.result(timeout=10)
        raw.delete(QueueKeys("demo").model, "millrace:models")
        assert not receiver.calls
        with GatewayServer(redis_url, webhooks=WebhookSettings(allowed=HERE)):
            receiver.wait()
            until(lambda: delivered(client, job.id))


def test_two_gateways_tell_nothing_twice(client: Client, redis_url: str) -> None:
    settings = WebhookSettings(allowed=HERE, max_calls=8, max_calls_per_receiver=8)

    def answer(handler: Any) -> None:
        time.sleep(0.02)
        handler.send_response(204)
        handler.end_headers()

    with (
        Receiver(answer) as receiver,
        GatewayServer(redis_url, webhooks=settings),
        GatewayServer(redis_url, webhooks=settings),
    ):
        jobs = client.submit_many({"prompt": "a", "webhook": receiver.url} for _ in range(100))
        until(lambda: all(delivered(client, job.id) for job in jobs))
        told = Counter(call.headers["webhook-id"] for call in receiver.calls)
    assert len(told) == 100
    assert set(told.values()) == {1}
    assert receiver.most_at_once <= 16


@pytest.fixture
def lasting_redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path, durable=True) as server:
        yield server


def test_redis_goes_away_in_a_call(lasting_redis: EmbeddedRedis) -> None:
    """The answer is written down when Redis is back, and later jobs are told of as before."""
    called, back = threading.Event(), threading.Event()

    def answer(handler: Any) -> None:
        called.set()
        back.wait(20)
        handler.send_response(200)
        handler.end_headers()

    settings = WebhookSettings(allowed=HERE, timeout=10.0, lease=60.0, poll=0.5)
    url = lasting_redis.url
    register(url)
    with (
        Receiver(answer) as receiver,
        GatewayServer(url, webhooks=settings, retry_for=0.2),
        Client(url) as client,
    ):
        with FakeWorker(url):
            job = client.submit("a", webhook=receiver.url)
            assert called.wait(10)
        lasting_redis.kill()
        back.set()
        time.sleep(0.5)
        lasting_redis.start()
        until(lambda: delivered(client, job.id))
        assert len(receiver.calls) == 1
        later = client.submit("a", webhook=receiver.url)
        later.cancel()
        receiver.wait(2)
        until(lambda: delivered(client, later.id))
