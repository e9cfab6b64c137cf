from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import redis
import structlog

from bulk_parts import Batches, BulkThread
from millrace.bulk.settings import BulkSettings


@pytest.fixture(autouse=True)
def logs_on_stderr() -> Iterator[None]:
    """Threads that work on batches log as long as a test runs; what commands print is another matter."""
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
def raw(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, protocol=2) as connection:
        yield connection
