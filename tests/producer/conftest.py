"""A client with one registered model, and a plain connection to look behind it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import redis

from fake_worker import register
from millrace import Client
from millrace_schemas import QueueKeys


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, protocol=2) as connection:
        yield connection


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    """A client of a Redis where "demo" is registered and nobody works."""
    register(redis_url)
    with Client(redis_url) as client:
        yield client


@pytest.fixture
def later(raw: redis.Redis) -> Iterator[Callable[..., None]]:
    """Calls a function after some seconds in a thread, which is over before `raw` is closed."""
    timers: list[threading.Timer] = []

    def start(seconds: float, function: Callable[..., object], *args: object, **named: object) -> None:
        timers.append(threading.Timer(seconds, function, args, named))
        timers[-1].start()

    yield start
    for timer in timers:
        timer.join()


@pytest.fixture
def keys() -> QueueKeys:
    return QueueKeys("demo")
