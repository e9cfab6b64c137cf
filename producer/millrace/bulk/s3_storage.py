"""Files in S3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

from .errors import InputChanged, StorageError

#: Bytes of one part of an upload: S3 takes 10,000 of at least 5 MiB, so files end at 160 GB.
_PART = 16 * 1024 * 1024
#: Of one read whose answer breaks off.
_TRIES = 3
_LASTING = {
    "NoSuchKey": "not_found",
    "NoSuchBucket": "not_found",
    "404": "not_found",
    "AccessDenied": "permission_denied",
    "403": "permission_denied",
    "InvalidAccessKeyId": "permission_denied",
    "SignatureDoesNotMatch": "permission_denied",
    "InvalidBucketName": "not_found",
}
_CHANGED = frozenset({"PreconditionFailed", "412"})


@contextmanager
def _translated(url: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

    try:
        yield
    except ClientError as e:
        code = str(e.response.get("Error", {}).get("Code", ""))
        if code in _CHANGED:
            raise InputChanged(f"{url} changed while it was read") from e
        known = _LASTING.get(code)
        raise StorageError(f"{url}: {e}", code=known or "storage_failed", lasting=known is not None) from e
    except ParamValidationError as e:
        # A bucket or key that no server can have.
        raise StorageError(f"{url}: {e}", code="not_found", lasting=True) from e
    except (BotoCoreError, ValueError, OSError) as e:
        raise StorageError(f"{url}: {e}") from e


class S3Input:
    """One version of an object, by its ETag."""

    def __init__(self, client: Any, url: str):
        self._client, self._url = client, url
        self._bucket, self._key = _split(url)
        with _translated(url):
            found = client.head_object(Bucket=self._bucket, Key=self._key)
        self.size = int(found["ContentLength"])
        self._etag = str(found["ETag"])
        self.version = f"{self._etag}-{self.size}"

    def read(self, offset: int, length: int) -> bytes:
        last = min(offset + length, self.size) - 1
        if last < offset:
            return b""
        with _translated(self._url):
            data = self._get(offset, last)
        if len(data) != last + 1 - offset:
            raise StorageError(f"{self._url}: the answer has {len(data):,} of {last + 1 - offset:,} bytes")
        return data

    def _get(self, offset: int, last: int) -> bytes:
        """boto3 repeats requests that failed, but not answers that broke off."""
        from botocore.exceptions import BotoCoreError

        tries = 0
        while True:
            found = self._client.get_object(
                Bucket=self._bucket, Key=self._key, Range=f"bytes={offset}-{last}", IfMatch=self._etag
            )
            # Not every server heeds IfMatch.
            if str(found["ETag"]) != self._etag:
                raise InputChanged(f"{self._url} changed while it was read")
            tries += 1
            try:
                data: bytes = found["Body"].read()
                return data
            except BotoCoreError:
                if tries == _TRIES:
                    raise

    def close(self) -> None:
        return


class S3Storage:
    """The Storage of s3:// URLs. Credentials, region and endpoint are where boto3 looks for them."""

    def __init__(self, client: Any):
        self._client = client

    @classmethod
    @cache
    def shared(cls) -> S3Storage:
        """One for all: its client may be used by many threads, and is slow to make."""
        try:
            import boto3
            from botocore.config import Config
        except ImportError as e:
            raise StorageError(
                'files in S3 need boto3: pip install "millrace[bulk]"', code="unknown_place", lasting=True
            ) from e
        # Servers other than AWS do not know the checksums that boto3 asks for by default.
        config = Config(
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"mode": "standard", "max_attempts": 4},
            connect_timeout=5,
            read_timeout=60,
        )
        return cls(boto3.session.Session().client("s3", config=config))

    def open(self, url: str) -> S3Input:
        return S3Input(self._client, url)

    def write(self, url: str, data: bytes) -> None:
        bucket, key = _split(url)
        with _translated(url):
            self._client.put_object(Bucket=bucket, Key=key, Body=data)

    def join(self, url: str, pieces: Iterator[bytes]) -> int:
        blocks = _blocks(pieces)
        first = next(blocks, b"")
        if len(first) < _PART:
            self.write(url, first)
            return len(first)
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, key = _split(url)
        with _translated(url):
            self._abort_unfinished(bucket, key)
            upload = self._client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
            common = {"Bucket": bucket, "Key": key, "UploadId": upload}
            try:
                return self._upload(common, first, blocks)
            except BaseException:
                # What stopped it is to be told, not that this failed, too; whoever joins the file next aborts it then.
                with suppress(BotoCoreError, ClientError):
                    self._client.abort_multipart_upload(**common)
                raise

    def remove(self, url: str) -> None:
        bucket, key = _split(url)
        with _translated(url):
            self._client.delete_object(Bucket=bucket, Key=key)
        self._abort_unfinished(bucket, key)

    def remove_under(self, prefix: str) -> None:
        bucket, key = _split(prefix)
        with _translated(prefix):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key):
                for found in page.get("Contents", ()):
                    self._client.delete_object(Bucket=bucket, Key=found["Key"])

    def _abort_unfinished(self, bucket: str, key: str) -> None:
        """Uploads of the same file by processes that died: nobody sees them, and they are paid for. Where they may not
        be listed they stay.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        with suppress(BotoCoreError, ClientError):
            for page in self._client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=key):
                for found in page.get("Uploads", ()):
                    if found["Key"] == key:
                        self._client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=found["UploadId"])

    def _upload(self, common: dict[str, Any], first: bytes, blocks: Iterator[bytes]) -> int:
        done: list[dict[str, Any]] = []
        size, block = 0, first
        while block:
            number = len(done) + 1
            tag = self._client.upload_part(**common, PartNumber=number, Body=block)["ETag"]
            done.append({"PartNumber": number, "ETag": tag})
            size += len(block)
            block = next(blocks, b"")
        self._client.complete_multipart_upload(**common, MultipartUpload={"Parts": done})
        return size


def _blocks(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks of _PART, the last one shorter."""
    held = bytearray()
    for piece in pieces:
        held += piece
        while len(held) >= _PART:
            yield bytes(held[:_PART])
            del held[:_PART]
    if held:
        yield bytes(held)


def _split(url: str) -> tuple[str, str]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key
