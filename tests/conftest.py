"""Real parts that tests share: one Redis server a session, emptied before each test that asks for it; one S3 server."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import redis

from millrace.embedded import EmbeddedRedis
from servers import S3Server, set_credentials

# What a shell starts in the background ignores SIGINT, and so would every process that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before anything imports torch, here and in workers. Models are tiny, and several processes run at once: threads that
# wait for each other would use up the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    root = tmp_path_factory.mktemp("s3") / "root"
    # Before the start: the server remembers for a while which buckets there are.
    (root / "answers").mkdir(parents=True)
    server = S3Server(root)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def s3_env(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server, with credentials where boto3 looks for them."""
    set_credentials(monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.url)
    return s3_server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: it is one test, and would keep one process busy while all others have ended."""
    items.sort(key=lambda item: item.get_closest_marker("interpret") is None)
