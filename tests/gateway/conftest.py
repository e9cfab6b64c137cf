"""A gateway before a real Redis where "demo" is registered, and the clients that talk to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx2
import openai
import pytest
import redis

from fake_worker import FakeWorker, register
from gateway_server import GatewayServer
from key_maker import KeyMaker
from millrace.embedded import EmbeddedRedis
from millrace.gateway import GatewaySettings
from millrace_schemas import QueueKeys, Request, decode


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, protocol=2) as connection:
        yield connection


@pytest.fixture
def keys() -> QueueKeys:
    return QueueKeys("demo")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    """Another than that of all other tests: the gateway's connections stay, and some tests count them."""
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture(scope="session")
def running_gateway(redis_server: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayServer]:
    files = f"file://{tmp_path_factory.mktemp('files')}"
    settings = GatewaySettings(keep_alive=0.3, max_body_bytes=100_000, max_jobs=5, body_timeout=1.0, files=files)
    with GatewayServer(redis_server.url, settings) as server:
        yield server


@pytest.fixture
def gateway(running_gateway: GatewayServer, redis_url: str) -> GatewayServer:
    """One for all tests, as it keeps nothing, before an empty Redis."""
    register(redis_url)
    return running_gateway


@pytest.fixture
def worker(redis_url: str) -> Iterator[FakeWorker]:
    with FakeWorker(redis_url) as worker:
        yield worker


@pytest.fixture
def idle_worker(redis_url: str) -> Iterator[FakeWorker]:
    """Takes jobs and keeps them until `release()`."""
    with FakeWorker(redis_url, hold=True) as worker:
        yield worker


@pytest.fixture(scope="session")
def clients(running_gateway: GatewayServer) -> Iterator[tuple[httpx2.Client, openai.OpenAI]]:
    """Made once: each reads all certificates of this machine."""
    with (
        httpx2.Client(base_url=running_gateway.url, timeout=20) as http,
        openai.OpenAI(base_url=f"{running_gateway.url}/v1", api_key="none", timeout=20) as ai,
    ):
        yield http, ai


@pytest.fixture
def http(gateway: GatewayServer, clients: tuple[httpx2.Client, openai.OpenAI]) -> httpx2.Client:
    return clients[0]


@pytest.fixture
def ai(gateway: GatewayServer, clients: tuple[httpx2.Client, openai.OpenAI]) -> openai.OpenAI:
    """OpenAI's client, as anybody would make it."""
    return clients[1]


@pytest.fixture(scope="session")
def running_locked_gateway(redis_server: EmbeddedRedis) -> Iterator[GatewayServer]:
    settings = GatewaySettings(
        require_keys=True, key_seconds=0.2, keep_alive=0.3, cors_origins=("https://app.example",)
    )
    with GatewayServer(redis_server.url, settings) as server:
        yield server


@pytest.fixture(scope="session")
def locked_clients(running_locked_gateway: GatewayServer) -> Iterator[tuple[httpx2.Client, openai.OpenAI]]:
    url = running_locked_gateway.url
    with (
        httpx2.Client(base_url=url, timeout=20) as http,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=20, max_retries=0) as ai,
    ):
        yield http, ai


@pytest.fixture
def locked(redis_url: str, locked_clients: tuple[httpx2.Client, openai.OpenAI]) -> httpx2.Client:
    """Of a gateway that asks for keys and remembers them for 0.2 s, before an empty Redis with "demo" registered."""
    register(redis_url)
    return locked_clients[0]


@pytest.fixture
def locked_ai(locked: httpx2.Client, locked_clients: tuple[httpx2.Client, openai.OpenAI]) -> openai.OpenAI:
    """Likewise; its key is none."""
    return locked_clients[1]


@pytest.fixture
def make_key(redis_url: str) -> KeyMaker:
    return KeyMaker(redis_url)


@pytest.fixture
def stored(raw: redis.Redis, keys: QueueKeys) -> Callable[[str], Request]:
    """The request in the hash of a job, by the id of the job or of its completion."""

    def read(completion_id: str) -> Request:
        data = raw.hget(keys.job(completion_id.removeprefix("chatcmpl-").removeprefix("cmpl-")), "request")
        return decode(data, Request)

    return read
