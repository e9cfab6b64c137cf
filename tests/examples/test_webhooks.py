"""The examples are told of their jobs' ends, by a gateway, through a webhook that they verify."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import httpx2
import pytest
import redis

from backends import until
from fake_worker import FakeWorker
from gateway_server import GatewayServer
from millrace.connection import Connection
from millrace.gateway.webhook_addresses import Allowed
from millrace.gateway.webhook_settings import WebhookSettings
from millrace.webhooks.outbox import Outbox
from millrace.webhooks.signature import new_secret, sign
from millrace_schemas import QueueKeys


@pytest.fixture
def secret(redis_url: str, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> str:
    async def read() -> str:
        connection = Connection(redis_url)
        try:
            return (await Outbox(connection).secrets(""))[0]
        finally:
            await connection.close()

    secret = asyncio.run(read())
    monkeypatch.setenv("MILLRACE_WEBHOOK_SECRET", secret)
    monkeypatch.setenv("MILLRACE_WEBHOOK_URL", str(http.base_url.join("/webhooks")))
    return secret


@pytest.fixture
def gateway(redis_url: str) -> Iterator[GatewayServer]:
    with GatewayServer(redis_url, webhooks=WebhookSettings(allowed=Allowed.of(["127.0.0.1"]))) as server:
        yield server


@pytest.fixture
def module(request: pytest.FixtureRequest) -> ModuleType:
    return sys.modules[f"{request.node.callspec.params['http']}_backend"]


def test_it_is_told(
    ask: Callable[..., str], secret: str, gateway: GatewayServer, worker: FakeWorker, module: ModuleType,
    raw: redis.Redis,
) -> None:  # fmt: skip
    job = ask("Is it in stock?")
    until(lambda: module.ANSWERS.get(job) == "IS IT IN STOCK?")
    until(lambda: raw.hget(QueueKeys("demo").job(job), "webhook_state") == b"delivered")
    failed = ask("fail", "two")
    until(lambda: raw.hget(QueueKeys("demo").job(failed), "webhook_state") == b"delivered")
    assert failed not in module.ANSWERS


def test_what_others_say_is_not_believed(http: httpx2.Client, secret: str, module: ModuleType) -> None:
    body = b'{"id":"evt_1","type":"job.completed","created_at":1,"data":{"id":"demo-01m808vwx0w3zfy5jfrd18ya95"}}'
    forged = sign(body, "evt_1", 1_700_000_000, [new_secret()])
    for headers in ({}, forged):
        assert http.post("/webhooks", content=body, headers=headers).status_code == 400
    assert "demo-01m808vwx0w3zfy5jfrd18ya95" not in module.ANSWERS
