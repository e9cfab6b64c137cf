"""Results that go to S3: the object first, then a pointer in Redis."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import msgspec
import structlog

from millrace_schemas import Result
from millrace_worker.errors import WorkerError

from .connection import Backoff

log = structlog.get_logger(__name__)

_TRIES = 5


class StoreFailed(WorkerError):
    """The object store did not take a result, after several tries."""


class ObjectStore:
    """Writes results as JSON objects; boto3 is loaded with the first one."""

    def __init__(self, endpoint_url: str | None = None):
        self._endpoint_url = endpoint_url
        self._client: Any = None
        self._lock = threading.Lock()

    async def put(self, target: str, result: Result) -> str:
        """Stores `result` under `target` ("s3://bucket/prefix") and returns its location.

        The key names the attempt, so a late writer of a lost lease never overwrites what a pointer names.
        Raises StoreFailed after several tries.
        """
        bucket, _, prefix = target.removeprefix("s3://").partition("/")
        key = "/".join(part for part in (prefix.strip("/"), f"{result.id}.{result.attempts}.json") if part)
        body = msgspec.json.encode(result)
        backoff = Backoff(0.2, 5.0)
        for tried in range(1, _TRIES + 1):
            try:
                await asyncio.to_thread(self._put, bucket, key, body)
            except Exception as e:  # botocore's errors share no usable base
                log.warning("object store refused a result", job=result.id, tried=tried, error=str(e))
                if tried == _TRIES or isinstance(e, ImportError):
                    raise StoreFailed(f"cannot store the result at s3://{bucket}/{key}: {e}") from e
                await backoff.sleep()
            else:
                return f"s3://{bucket}/{key}"
        raise AssertionError("unreachable")

    def _put(self, bucket: str, key: str, body: bytes) -> None:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
        self._client.put_object(Bucket=bucket, Key=key, Body=body, ContentType="application/json")

    def _connect(self) -> Any:
        import boto3
        from botocore.config import Config

        # Servers other than AWS's refuse the checksums that newer botocore adds by itself.
        config = Config(
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            connect_timeout=10,
            read_timeout=60,
            retries={"max_attempts": 1},
        )
        return boto3.client("s3", endpoint_url=self._endpoint_url, config=config)
