from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import redis
import structlog

from bulk_parts import Batches, BulkThread
from faulty_s3 import FaultyS3
from millrace.bulk.s3_storage import S3Storage
from millrace.bulk.settings import BulkSettings
from servers import S3Server


@pytest.fixture(autouse=True)
def logs_on_stderr() -> Iterator[None]:
    """Threads that work on batches log as long as a test runs; what commands print is another matter."""
    # A command that ran in this process may have set up all of it.
    structlog.reset_defaults()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))
    yield
    structlog.reset_defaults()


@pytest.fixture
def batches(redis_url: str) -> Batches:
    return Batches(redis_url)


@pytest.fixture
def bulk(redis_url: str) -> Iterator[BulkThread]:
    with BulkThread(redis_url, BulkSettings(flush_seconds=0.3, turn=1.0)) as running:
        yield running


@pytest.fixture
def faulty(s3_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """The S3 server that everything here sees, in this process and in those that it starts."""
    forget_client()
    with FaultyS3(s3_env.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        yield proxy
    forget_client()


def forget_client() -> None:
    S3Storage.__dict__["shared"].__func__.cache_clear()


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, protocol=2) as connection:
        yield connection
