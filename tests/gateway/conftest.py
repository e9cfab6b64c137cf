"""A gateway before a real Redis where "demo" is registered, and the clients that talk to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx2
import openai
import pytest
import redis

from fake_worker import FakeWorker, register
from gateway_server import GatewayServer
from millrace.gateway import GatewaySettings
from millrace_schemas import QueueKeys, Request, decode


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, protocol=2) as connection:
        yield connection


@pytest.fixture
def keys() -> QueueKeys:
    return QueueKeys("demo")


@pytest.fixture
def gateway(redis_url: str) -> Iterator[GatewayServer]:
    register(redis_url)
    settings = GatewaySettings(keep_alive=0.3, max_body_bytes=100_000, max_streams=3, max_jobs=5, body_timeout=1.0)
    with GatewayServer(redis_url, settings) as server:
        yield server


@pytest.fixture
def worker(redis_url: str) -> Iterator[FakeWorker]:
    with FakeWorker(redis_url) as worker:
        yield worker


@pytest.fixture
def idle_worker(redis_url: str) -> Iterator[FakeWorker]:
    """Takes jobs and keeps them until `release()`."""
    with FakeWorker(redis_url, hold=True) as worker:
        yield worker


@pytest.fixture
def http(gateway: GatewayServer) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=gateway.url, timeout=20) as client:
        yield client


@pytest.fixture
def ai(gateway: GatewayServer) -> Iterator[openai.OpenAI]:
    """OpenAI's client, as anybody would make it."""
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", timeout=20) as client:
        yield client


@pytest.fixture
def stored(raw: redis.Redis, keys: QueueKeys) -> Callable[[str], Request]:
    """The request in the hash of a job, by the id of the job or of its completion."""

    def read(completion_id: str) -> Request:
        data = raw.hget(keys.job(completion_id.removeprefix("chatcmpl-").removeprefix("cmpl-")), "request")
        return decode(data, Request)

    return read
