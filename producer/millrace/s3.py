"""Results that live in S3."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

import msgspec

from millrace_schemas import Result

from .errors import ResultUnavailable


async def load(result: Result) -> Result:
    """`result` itself, or the whole one from its `location`.

    Raises ResultUnavailable when the object cannot be fetched.
    """
    if result.location is None:
        return result
    whole = await asyncio.to_thread(_fetch, result.location)
    return msgspec.structs.replace(whole, location=result.location)


@cache
def _client() -> Any:
    """Threads may share it, and making one takes as long as dozens of results."""
    import boto3
    from botocore.config import Config

    # Servers other than AWS do not know the checksums that boto3 asks for by default.
    config = Config(request_checksum_calculation="when_required", response_checksum_validation="when_required")
    # A session of its own: boto3's default one is not safe to share between threads.
    return boto3.session.Session().client("s3", config=config)


def _fetch(location: str) -> Result:
    bucket, _, key = location.removeprefix("s3://").partition("/")
    try:
        from botocore.exceptions import BotoCoreError, ClientError

        client = _client()
    except ImportError as e:
        raise ResultUnavailable(f'the result is at {location}; to read it: pip install "millrace[s3]"') from e
    try:
        body = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    except (BotoCoreError, ClientError, ValueError) as e:
        raise ResultUnavailable(f"the result at {location} cannot be read: {e}") from e
    try:
        return msgspec.json.decode(body, type=Result)
    except msgspec.DecodeError as e:
        raise ResultUnavailable(f"the object at {location} is no result: {e}") from e
