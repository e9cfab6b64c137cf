from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
import redis

from fake_worker import FakeWorker, register
from millrace import AsyncClient, Client, Finished, InvalidRequest, JobState, Result, Started, Tokens
from millrace import event_stream as event_stream_module
from millrace_schemas import QueueKeys, encode

Later = Callable[..., None]


def publish(raw: redis.Redis, keys: QueueKeys, job_id: str, *events) -> None:
    for event in events:
        raw.xadd(keys.events(job_id), {"e": encode(event)})


def test_events_in_order(redis_url: str) -> None:
    with FakeWorker(redis_url), Client(redis_url) as client:
        job = client.submit("hello", stream=True)
        events = list(job.events())
        assert [type(e) for e in events] == [Started, Tokens, Tokens, Finished]
        assert "".join(e.text for e in events if isinstance(e, Tokens)) == "HELLO"
        assert events[-1].result == job.result()
        # Also when all is over, and by id.
        assert list(client.events(job.id)) == events


def test_events_go_on_behind_any_of_them(redis_url: str) -> None:
    with FakeWorker(redis_url), Client(redis_url) as client:
        job = client.submit("hello", stream=True)
        everything = list(job.events())
        for seen in range(1, 5):
            stream = job.events()
            for _ in range(seen):
                next(stream)
            rest = list(job.events(after=stream.last_id))
            # Behind the last event there is the end, again: a reader that lost it must not wait for ever.
            assert rest == (everything[seen:] or everything[-1:])


def test_events_arrive_while_the_job_runs(client: Client, raw: redis.Redis, keys: QueueKeys, later: Later) -> None:
    job = client.submit("a", stream=True)
    stream = job.events()
    later(0.1, publish, raw, keys, job.id, Started(attempt=1))
    assert next(stream) == Started(attempt=1)
    publish(raw, keys, job.id, Tokens(0, (1,), "a"))
    assert next(stream) == Tokens(0, (1,), "a")
    result = Result(id=job.id, model="demo", state=JobState.COMPLETED)
    later(0.1, publish, raw, keys, job.id, Finished(result))
    assert list(stream) == [Finished(result)]
    assert list(stream) == []


def test_a_reader_that_is_cancelled_while_the_result_is_fetched(
    redis_url: str, raw: redis.Redis, keys: QueueKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end is handed out by the next call, whatever became of the one before."""
    fetched = asyncio.Event()

    async def load(result: Result) -> Result:
        await fetched.wait()
        return result

    async def run() -> None:
        register(redis_url)
        async with AsyncClient(redis_url) as client:
            job = await client.submit("a", stream=True)
            result = Result(id=job.id, model="demo", state=JobState.COMPLETED, location="s3://bucket/a.json")
            publish(raw, keys, job.id, Started(attempt=1), Finished(result))
            stream = job.events()
            assert await anext(stream) == Started(attempt=1)
            before = stream.last_id
            for _ in range(2):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await anext(stream)
                assert stream.last_id == before
            fetched.set()
            assert [event async for event in stream] == [Finished(result)]
            assert stream.last_id != before

    monkeypatch.setattr("millrace.s3.load", load)
    asyncio.run(run())


def test_an_end_without_an_event(
    client: Client, raw: redis.Redis, keys: QueueKeys, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream_module, "_BLOCK", 0.1)
    job = client.submit("a", stream=True)
    result = Result(id=job.id, model="demo", state=JobState.EXPIRED)

    def end() -> None:
        raw.set(keys.result(job.id), encode(result))
        raw.hset(keys.job(job.id), "state", "expired")

    later(0.3, end)
    assert list(job.events()) == [Finished(result)]


def test_a_job_without_events(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="submit it with stream=True") as caught:
        next(client.submit("a").events())
    assert caught.value.param == "stream"


def test_no_event_id(client: Client) -> None:
    for after in ("", "5", "$", "0-0\n", "x-1"):
        with pytest.raises(InvalidRequest, match="as last_id gives it") as caught:
            client.submit("a", stream=True).events(after=after)
        assert caught.value.param == "after"


def test_a_connection_that_breaks_in_between(redis_url: str, raw: redis.Redis, keys: QueueKeys) -> None:
    register(redis_url)

    async def run() -> None:
        async with AsyncClient(redis_url) as client:
            job = await client.submit("a", stream=True)
            stream = job.events()
            reading = asyncio.create_task(anext(stream))
            while not any(c["cmd"] == "xread" for c in raw.client_list()):
                await asyncio.sleep(0.01)
            for c in raw.client_list():
                if c["cmd"] == "xread":
                    raw.client_kill_filter(_id=c["id"])
            publish(raw, keys, job.id, Started(attempt=1))
            assert await reading == Started(attempt=1)

    asyncio.run(run())


def test_many_streams_do_not_hold_up_other_calls(redis_url: str) -> None:
    register(redis_url)

    async def run() -> None:
        async with AsyncClient(redis_url) as client:
            jobs = await client.submit_many({"prompt": "a", "stream": True} for _ in range(40))
            reads = [asyncio.create_task(anext(job.events())) for job in jobs]
            await asyncio.sleep(0.2)
            began = time.monotonic()
            assert await jobs[0].state() == JobState.QUEUED
            assert time.monotonic() - began < 4
            for read in reads:
                read.cancel()
            await asyncio.gather(*reads, return_exceptions=True)

    asyncio.run(run())
