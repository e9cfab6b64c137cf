"""Buckets of requests and tokens a minute, in Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import redis

from millrace import RateLimited, Request, Sampling
from millrace.connection import Connection
from millrace.rates import Meter, most_tokens
from millrace.submission import Submission
from millrace_schemas import JobState, Result, Usage
from millrace_schemas.keys import rate_key

KEY = "abcdefghij01"


def job(tokens: int = 10, max_tokens: int | None = 10, context: int = 512) -> Submission:
    request = Request(model="demo", prompt_token_ids=(1,) * tokens, sampling=Sampling(max_tokens=max_tokens))
    made = Submission.of(request)
    return Submission(made.id, made.queue, made.request, made.data, None, 0, context)


def with_meters(url: str, do: Callable[[Callable[..., Meter]], Awaitable[None]]) -> None:
    async def run() -> None:
        connection = Connection(url)

        def make(requests: int = 0, tokens: int = 0) -> Meter:
            return Meter(connection, KEY, requests_per_minute=requests, tokens_per_minute=tokens)

        try:
            await do(make)
        finally:
            await connection.close()

    asyncio.run(run())


def later(raw: redis.Redis, seconds: float) -> None:
    """As if so many seconds had passed."""
    for name, full in raw.hgetall(rate_key(KEY)).items():
        raw.hset(rate_key(KEY), name, float(full) - seconds)


def test_a_bucket_fills_steadily(redis_url: str, raw: redis.Redis) -> None:
    async def do(make: Callable[..., Meter]) -> None:
        await make(6).take([job()] * 6)
        with pytest.raises(RateLimited, match=r"may use 6 requests a minute.*try again in") as caught:
            await make(6).take([job()])
        assert (caught.value.what, caught.value.limit) == ("requests", 6)
        assert 9 < (caught.value.retry_after or 0) <= 10
        with pytest.raises(RateLimited) as caught:
            await make(6).take([job()] * 3)
        assert 29 < (caught.value.retry_after or 0) <= 30
        later(raw, 20)
        meter = make(6)
        await meter.take([job()])
        assert (meter.allowances["requests"].limit, meter.allowances["requests"].remaining) == (6, 1)
        assert 45 < meter.allowances["requests"].reset <= 50
        # Never more than a minute's worth.
        later(raw, 1000)
        await make(6).take([job()] * 6)
        with pytest.raises(RateLimited):
            await make(6).take([job()])

    with_meters(redis_url, do)


def test_both_are_taken_or_neither(redis_url: str, raw: redis.Redis) -> None:
    async def do(make: Callable[..., Meter]) -> None:
        meter = make(10, 100)
        await meter.take([job(30, 30)])
        with pytest.raises(RateLimited) as caught:
            await meter.take([job(30, 30)])
        assert caught.value.what == "tokens"
        assert [meter.allowances[name].remaining for name in ("requests", "tokens")] == [9, pytest.approx(40, abs=10)]
        with pytest.raises(RateLimited) as caught:
            await meter.take([job(1, 1)] * 10)
        assert caught.value.what == "requests"
        await meter.take([job(10, 10)])
        assert meter.allowances["requests"].remaining == 8

    with_meters(redis_url, do)


def test_more_than_there_ever_is(redis_url: str) -> None:
    async def do(make: Callable[..., Meter]) -> None:
        with pytest.raises(RateLimited, match="more than it may ever use at once") as caught:
            await make(0, 100).take([job(60, 60)])
        assert (caught.value.what, caught.value.retry_after) == ("tokens", None)
        await make(0, 100).take([job(50, 50)])

    with_meters(redis_url, do)


def test_what_was_not_used_is_given_back(redis_url: str, raw: redis.Redis) -> None:
    async def do(make: Callable[..., Meter]) -> None:
        meter, submission = make(0, 100), job(50, 50)
        await meter.take([submission])
        meter.made(submission, "first")
        result = Result(id="first", model="demo", state=JobState.COMPLETED, usage=Usage(10, 10))
        await meter.settle(result)
        # Once.
        await meter.settle(result)
        assert 80 <= meter.allowances["tokens"].remaining < 95
        # More than was counted is a debt, which is paid first.
        submission = job(1, 1)
        await meter.take([submission])
        usage = Usage(100, 100)
        await meter.settle(Result(id=submission.id, model="demo", state=JobState.COMPLETED, usage=usage))
        with pytest.raises(RateLimited) as caught:
            await make(0, 100).take([job(1, 1)])
        assert 60 < (caught.value.retry_after or 0) < 75
        assert raw.ttl(rate_key(KEY)) > 100

    with_meters(redis_url, do)


def test_a_job_counts_what_it_may_use_at_most() -> None:
    assert most_tokens(job(10, 20)) == 30
    assert most_tokens(job(10, None)) == 512
    assert most_tokens(job(600, None)) == 513
    text = Submission.of(Request(model="demo", prompt="é" * 400, sampling=Sampling(max_tokens=5)))
    assert 200 < most_tokens(Submission(text.id, text.queue, text.request, text.data, None, 0, 512)) < 240
