"""Each example behind a real server, before a real Redis where "demo" is registered."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import ModuleType

import httpx2
import pytest
import redis

from backends import asgi, load, wsgi
from fake_worker import FakeWorker, register
from millrace.embedded import EmbeddedRedis


@pytest.fixture(scope="session")
def example_environ(redis_server: EmbeddedRedis) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MILLRACE_REDIS_URL", redis_server.url)
        yield


#: Django's settings cannot be made twice in a process.
load_once = functools.cache(load)


def forget_client(module: ModuleType) -> None:
    """Other tests count connections and threads: none may stay behind."""
    module.get_client().close()
    module.get_client.cache_clear()


@pytest.fixture(scope="module")
def fastapi_url(example_environ: None) -> Iterator[str]:
    with asgi(load("fastapi_backend").app) as url:
        yield url


@pytest.fixture(scope="module")
def flask_url(example_environ: None) -> Iterator[str]:
    module = load_once("flask_backend")
    with wsgi(module.app) as url:
        yield url
    forget_client(module)


@pytest.fixture(scope="module")
def django_url(example_environ: None) -> Iterator[str]:
    module = load_once("django_backend")
    with wsgi(module.application) as url:
        yield url
    forget_client(module)


@pytest.fixture(params=["fastapi", "flask", "django"])
def http(request: pytest.FixtureRequest, redis_url: str) -> Iterator[httpx2.Client]:
    """A browser of one backend."""
    register(redis_url)
    url = request.getfixturevalue(f"{request.param}_url")
    with httpx2.Client(base_url=url, timeout=20, verify=False) as client:
        yield client


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, protocol=2) as connection:
        yield connection


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
def ask(http: httpx2.Client) -> Callable[..., str]:
    """Asks and returns the id of the job."""

    def send(question: str = "hello", key: str = "k") -> str:
        answer = http.post("/answers", json={"question": question}, headers={"Idempotency-Key": key})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    return send
