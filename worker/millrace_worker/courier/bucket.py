"""The records of one fingerprint in a bucket, as objects `<prefix><name in hex>.kv`."""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectTimeoutError, NoCredentialsError, ReadTimeoutError

from millrace_worker.courier_frames import Start

from .refused import Refused

_SUFFIX = ".kv"
_NAME = re.compile(r"[0-9a-f]{64}\.kv")
_CHUNK = 256 * 1024
_CONNECT_SECONDS = 3.0
_REASONS = {
    "404": "gone",
    "NoSuchKey": "gone",
    "NoSuchBucket": "no_bucket",
    "403": "denied",
    "AccessDenied": "denied",
    "InvalidAccessKeyId": "denied",
    "SignatureDoesNotMatch": "denied",
    "ExpiredToken": "denied",
    "503": "busy",
    "SlowDown": "busy",
    "ServiceUnavailable": "busy",
    "429": "busy",
    "TooManyRequests": "busy",
}


class Bucket:
    """Requests to S3, each with a deadline, none repeated here. For any number of threads. All may raise Refused."""

    def __init__(self, start: Start) -> None:
        """Raises BotoCoreError and ValueError when there can be no client of this configuration."""
        self._start = start
        # Servers other than AWS's refuse the checksums that newer botocore adds by itself.
        config = Config(
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            connect_timeout=min(_CONNECT_SECONDS, start.request_seconds),
            read_timeout=start.request_seconds / 2,
            # A server that is busy for a moment answers the second time; the engine's deadlines bound both.
            retries={"total_max_attempts": 2, "mode": "standard"},
            max_pool_connections=start.fetches_at_once + start.stores_at_once + 2,
        )
        self._client: Any = boto3.client("s3", endpoint_url=start.endpoint_url, config=config)

    def pages(self) -> Iterator[list[bytes]]:
        """Names of the records that are there now, a request's answer each."""
        prefix = self._start.prefix
        with _translated(self._start.bucket):
            for page in self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._start.bucket, Prefix=prefix
            ):
                yield [
                    bytes.fromhex(found["Key"][len(prefix) : -len(_SUFFIX)])
                    for found in page.get("Contents", ())
                    # What is of another length is no record, and is written over.
                    if _NAME.fullmatch(found["Key"], len(prefix)) and found["Size"] == self._start.record_bytes
                ]

    def download(self, name: bytes, path: Path) -> None:
        """Puts the record at `path`, whole or not at all."""
        ends = time.monotonic() + self._start.request_seconds
        key = self._key(name)
        with _translated(key):
            answer = self._client.get_object(Bucket=self._start.bucket, Key=key)
        with closing(answer["Body"]) as body:
            length, wanted = answer["ContentLength"], self._start.record_bytes
            if length != wanted:
                raise Refused("length", f"{key} has {length} bytes, not {wanted}")
            temporary = path.with_suffix(f".tmp{os.getpid()}")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with temporary.open("wb") as f:
                    for chunk in _chunks(body, wanted, key, ends):
                        f.write(chunk)
                temporary.replace(path)
            except OSError as e:
                raise Refused("disk_error", str(e)) from e
            finally:
                with suppress(OSError):
                    temporary.unlink()

    def upload(self, name: bytes, path: Path, *, replace: bool) -> bool:
        """Whether it was written: with `replace` False a record that is there is left as it is."""
        key, ends = self._key(name), time.monotonic() + self._start.request_seconds
        if not replace and self._length(key) == self._start.record_bytes:
            return False
        try:
            data = path.read_bytes()
        except FileNotFoundError as e:
            raise Refused("dropped", str(e)) from e  # from the disk, for others
        except OSError as e:
            raise Refused("disk_error", str(e)) from e
        if len(data) != self._start.record_bytes:
            raise Refused("disk_error", f"{path} has {len(data)} bytes, not {self._start.record_bytes}")
        body, kind = _Timed(data, ends), "application/octet-stream"
        try:
            with _translated(key):
                self._client.put_object(Bucket=self._start.bucket, Key=key, Body=body, ContentType=kind)
        except Refused as e:
            raise Refused("deadline", e.detail) if time.monotonic() > ends else e from e
        return True

    def remove(self, name: bytes) -> None:
        with _translated(self._key(name)):
            self._client.delete_object(Bucket=self._start.bucket, Key=self._key(name))

    def _length(self, key: str) -> int | None:
        try:
            with _translated(key):
                return int(self._client.head_object(Bucket=self._start.bucket, Key=key)["ContentLength"])
        except Refused as e:
            if e.reason != "gone":
                raise
            return None

    def _key(self, name: bytes) -> str:
        return self._start.prefix + name.hex() + _SUFFIX


class _Timed(io.BytesIO):
    """A body that is not sent on after a time."""

    def __init__(self, data: bytes, ends: float) -> None:
        super().__init__(data)
        self._ends = ends

    def read(self, size: int | None = -1, /) -> bytes:
        if time.monotonic() > self._ends:
            raise TimeoutError("the upload was not through in time")
        return super().read(size)


def _chunks(body: Any, length: int, key: str, ends: float) -> Iterator[bytes]:
    read = 0
    while True:
        with _translated(key):
            chunk: bytes = body.read(_CHUNK)
        read += len(chunk)
        # Late is late, even with the last of it: what was yielded so far is not all.
        if (not chunk and read != length) or read > length or (chunk and time.monotonic() > ends):
            raise Refused("deadline", f"{key} was not there in time: {read} of {length} bytes")
        if not chunk:
            return
        yield chunk


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Failures of requests as Refused."""
    try:
        yield
    except ClientError as e:
        raise Refused(_REASONS.get(str(e.response.get("Error", {}).get("Code", "")), "error"), f"{what}: {e}") from e
    except (ReadTimeoutError, ConnectTimeoutError) as e:
        raise Refused("deadline", f"{what}: {e}") from e
    except NoCredentialsError as e:
        raise Refused("denied", f"{what}: {e}") from e
    except BotoCoreError as e:
        raise Refused("unreachable", f"{what}: {e}") from e
