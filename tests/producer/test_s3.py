from __future__ import annotations

import sys

import boto3
import msgspec
import pytest
import redis
from botocore.config import Config

from millrace import (
    Choice,
    Client,
    ErrorCode,
    ErrorInfo,
    Finished,
    FinishReason,
    JobFailed,
    JobState,
    MillraceError,
    Result,
    ResultUnavailable,
    s3,
)
from millrace_schemas import QueueKeys, encode
from servers import S3Server


def end(raw: redis.Redis, keys: QueueKeys, stub: Result, *, event: bool = False) -> None:
    raw.set(keys.result(stub.id), encode(stub))
    raw.hset(keys.job(stub.id), "state", str(stub.state))
    if event:
        raw.xadd(keys.events(stub.id), {"e": encode(Finished(stub))})


def put(bucket: str, key: str, body: bytes) -> None:
    s3 = boto3.session.Session().client("s3", config=Config(request_checksum_calculation="when_required"))
    s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key=key, Body=body)
    s3.close()


def test_a_result_in_s3_is_fetched(client: Client, raw: redis.Redis, keys: QueueKeys, s3_env: S3Server) -> None:
    job = client.submit("a", result_to="s3://results/some/prefix", stream=True)
    choice = Choice(0, "from S3 ✓", (1, 2), FinishReason.STOP)
    whole = Result(id=job.id, model="demo", state=JobState.COMPLETED, choices=(choice,))
    put("results", f"some/prefix/{job.id}.1.json", msgspec.json.encode(whole))
    location = f"s3://results/some/prefix/{job.id}.1.json"
    end(raw, keys, msgspec.structs.replace(whole, choices=(), location=location), event=True)
    found = job.result(timeout=10)
    assert found == msgspec.structs.replace(whole, location=location)
    assert list(job.events()) == [Finished(found)]


def test_objects_that_cannot_be_used(client: Client, raw: redis.Redis, keys: QueueKeys, s3_env: S3Server) -> None:
    put("broken", "not-json", b"<html>")
    for location, words in (
        ("s3://broken/not-json", "is no result"),
        ("s3://broken/missing", "cannot be read"),
        ("s3://no-such-bucket/key", "cannot be read"),
    ):
        job = client.submit("a")
        end(raw, keys, Result(id=job.id, model="demo", state=JobState.COMPLETED, location=location))
        with pytest.raises(ResultUnavailable, match=words) as caught:
            job.result(timeout=10)
        assert location in str(caught.value)
        assert isinstance(caught.value, MillraceError)


def test_a_failed_job_needs_no_s3(client: Client, raw: redis.Redis, keys: QueueKeys) -> None:
    job = client.submit("a", result_to="s3://results/x")
    error = ErrorInfo(ErrorCode.RESULT_STORE_FAILED, "no such bucket")
    end(raw, keys, Result(id=job.id, model="demo", state=JobState.FAILED, error=error))
    with pytest.raises(JobFailed, match="no such bucket"):
        job.result(timeout=10)


def test_without_boto3(client: Client, raw: redis.Redis, keys: QueueKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    s3._client.cache_clear()
    job = client.submit("a")
    end(raw, keys, Result(id=job.id, model="demo", state=JobState.COMPLETED, location="s3://b/k"))
    with pytest.raises(ResultUnavailable, match=r'the result is at s3://b/k; to read it: pip install "millrace\[s3\]"'):
        job.result(timeout=10)
