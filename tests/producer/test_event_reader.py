"""One connection reads the events of many jobs: none lost, none twice, and nobody waits for anybody else."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from fake_worker import register
from millrace import (
    AsyncClient,
    AsyncJob,
    ClientClosed,
    DecodeError,
    Finished,
    InvalidRequest,
    JobState,
    Result,
    Started,
    Tokens,
)
from millrace import event_shard as event_shard_module
from millrace import event_stream as event_stream_module
from millrace.connection import Connection
from millrace.embedded import EmbeddedRedis
from millrace.wire import Wire
from millrace_schemas import Event, QueueKeys, QueueUnavailable, encode


def publish(raw: redis.Redis, keys: QueueKeys, job: AsyncJob, *events: Event) -> None:
    with raw.pipeline(transaction=False) as pipe:
        for event in events:
            pipe.xadd(keys.events(job.id), {"e": encode(event)})
        pipe.execute()


def token(i: int) -> Tokens:
    return Tokens(i, (i,), f"{i} ")


def end(job: AsyncJob) -> Finished:
    return Finished(Result(id=job.id, model="demo", state=JobState.COMPLETED))


async def submit(client: AsyncClient, count: int) -> list[AsyncJob]:
    return await client.submit_many({"prompt": "a", "stream": True} for _ in range(count))


def readers(raw: redis.Redis) -> list[dict[str, str]]:
    return [c for c in raw.client_list() if c["cmd"] == "xread"]


def assert_alone(raw: redis.Redis) -> None:
    """The server sees a connection's end a moment later."""
    limit = time.monotonic() + 10
    while len(raw.client_list()) > 1:
        assert time.monotonic() < limit, raw.client_list()
        time.sleep(0.01)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that is not woken lasts longer than the test."""
    monkeypatch.setattr(event_shard_module, "_BLOCK", 60.0)
    monkeypatch.setattr(event_stream_module, "_BLOCK", 60.0)


@pytest.mark.usefixtures("patient")
def test_many_streams_share_connections(redis_url: str, raw: redis.Redis, keys: QueueKeys) -> None:
    register(redis_url)

    async def run() -> None:
        async with asyncio.timeout(30), AsyncClient(redis_url) as client:
            jobs = await submit(client, 300)
            reading = [asyncio.create_task(anext(job.events())) for job in jobs]
            await until(lambda: len(readers(raw)) == 3)
            for job in random.sample(jobs, len(jobs)):
                publish(raw, keys, job, Started(attempt=1))
            assert await asyncio.gather(*reading) == [Started(attempt=1)] * 300
            assert len(readers(raw)) <= 3

    asyncio.run(run())
    assert_alone(raw)


@pytest.mark.usefixtures("patient")
def test_one_that_joins_is_read_for(redis_url: str, raw: redis.Redis, keys: QueueKeys) -> None:
    """Also one that joins at any moment of another's join."""
    register(redis_url)

    async def run() -> None:
        async with asyncio.timeout(30), AsyncClient(redis_url) as client:
            jobs = await submit(client, 60)
            for job in jobs:
                publish(raw, keys, job, Started(attempt=1))
            idle = asyncio.create_task(anext((await submit(client, 1))[0].events()))

            async def read(i: int) -> Event:
                await asyncio.sleep(i * 0.0007)
                stream = jobs[i].events()
                assert await anext(stream) == Started(attempt=1)
                publish(raw, keys, jobs[i], token(0))
                return await anext(stream)

            assert await asyncio.gather(*(read(i) for i in range(60))) == [token(0)] * 60
            assert not idle.done()
            idle.cancel()

    asyncio.run(run())


@pytest.mark.usefixtures("patient")
def test_a_wake_that_comes_before_the_read_it_is_meant_for(
    redis_url: str, raw: redis.Redis, keys: QueueKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(redis_url)
    run_packed = Wire.run_packed

    async def late(wire: Wire, packed: bytes) -> object:
        await asyncio.sleep(0.1)
        return await run_packed(wire, packed)

    monkeypatch.setattr(Wire, "run_packed", late)

    async def run() -> None:
        async with asyncio.timeout(30), AsyncClient(redis_url) as client:
            first, second = await submit(client, 2)
            publish(raw, keys, second, token(0))
            waiting = asyncio.create_task(anext(first.events()))
            await asyncio.sleep(0.05)
            assert await anext(second.events()) == token(0)
            waiting.cancel()

    asyncio.run(run())


@pytest.mark.usefixtures("patient")
def test_one_that_joins_while_another_is_being_let_in(
    redis_url: str, raw: redis.Redis, keys: QueueKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the first wake comes when the read that it made room for is long under way."""
    register(redis_url)
    run_commands = Connection.run

    async def slow_answer(connection: Connection, *commands: Any, size: int = 0) -> list[Any]:
        replies = await run_commands(connection, *commands, size=size)
        if commands[0][:2] == ("CLIENT", "UNBLOCK"):
            await asyncio.sleep(0.2)
        return replies

    monkeypatch.setattr(Connection, "run", slow_answer)

    async def run() -> None:
        async with asyncio.timeout(30), AsyncClient(redis_url) as client:
            first, second, third = await submit(client, 3)
            publish(raw, keys, third, token(0))
            waiting = [asyncio.create_task(anext(first.events()))]
            await until(lambda: readers(raw))
            waiting.append(asyncio.create_task(anext(second.events())))
            await asyncio.sleep(0.1)
            assert await anext(third.events()) == token(0)
            for task in waiting:
                task.cancel()

    asyncio.run(run())


def test_broken_connections_lose_and_repeat_nothing(redis_url: str, raw: redis.Redis, keys: QueueKeys) -> None:
    register(redis_url)

    async def run() -> None:
        async with asyncio.timeout(60), AsyncClient(redis_url) as client:
            jobs = await submit(client, 20)

            async def read(job: AsyncJob) -> list[Event]:
                return [event async for event in job.events()]

            reading = [asyncio.create_task(read(job)) for job in jobs]
            for i in range(40):
                for job in jobs:
                    publish(raw, keys, job, token(i))
                if i % 8 == 0:
                    for found in readers(raw):
                        raw.client_kill_filter(_id=found["id"])
                await asyncio.sleep(0.01)
            for job in jobs:
                publish(raw, keys, job, end(job))
            for job, events in zip(jobs, await asyncio.gather(*reading), strict=True):
                assert events == [*(token(i) for i in range(40)), end(job)]

    asyncio.run(run())


def test_a_slow_reader_is_bounded_and_holds_up_nobody(redis_url: str, raw: redis.Redis, keys: QueueKeys) -> None:
    register(redis_url)

    async def run() -> None:
        async with asyncio.timeout(30), AsyncClient(redis_url) as client:
            slow, quick = await submit(client, 2)
            lagging, stream = slow.events(), quick.events()
            publish(raw, keys, slow, *(token(i) for i in range(1000)))
            assert await anext(lagging) == token(0)
            for i in range(200):
                publish(raw, keys, quick, token(i))
                assert await anext(stream) == token(i)
            reader = client._backend._events  # type: ignore[attr-defined]
            (shard,) = reader._shards
            held = {cursor.job_id: len(cursor._events) for cursor in shard.cursors}
            assert held[slow.id] <= 64
            assert [await anext(lagging) for _ in range(999)] == [token(i) for i in range(1, 1000)]

    asyncio.run(run())


def test_one_that_does_not_come_back_is_forgotten(
    redis_url: str, raw: redis.Redis, keys: QueueKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"_FORGET": 0.1, "_IDLE": 0.1, "_BLOCK": 0.2}.items():
        monkeypatch.setattr(event_shard_module, name, value)
    register(redis_url)

    async def run() -> None:
        async with asyncio.timeout(30), AsyncClient(redis_url) as client:
            jobs = await submit(client, 20)
            streams = [job.events() for job in jobs]
            for job in jobs:
                publish(raw, keys, job, token(0))
            for stream in streams:
                assert await anext(stream) == token(0)
            reader = client._backend._events  # type: ignore[attr-defined]
            await until(lambda: reader.connections == 0)
            assert reader._kept == {}
            await until(lambda: not readers(raw))
            # Its place is its own: it goes on there all the same.
            publish(raw, keys, jobs[0], token(1))
            assert await anext(streams[0]) == token(1)

    asyncio.run(run())


def test_readers_of_one_job_at_different_places(redis_url: str, raw: redis.Redis, keys: QueueKeys) -> None:
    register(redis_url)

    async def run() -> None:
        async with asyncio.timeout(30), AsyncClient(redis_url) as client:
            (job,) = await submit(client, 1)
            publish(raw, keys, job, *(token(i) for i in range(200)))

            async def read(delay: float) -> list[Event]:
                found = []
                async for event in job.events():
                    found.append(event)
                    if len(found) % 50 == 0:
                        await asyncio.sleep(delay)
                return found

            reading = [asyncio.create_task(read(i * 0.01)) for i in range(6)]
            await asyncio.sleep(0.05)
            publish(raw, keys, job, end(job))
            for events in await asyncio.gather(*reading):
                assert events == [*(token(i) for i in range(200)), end(job)]
            assert len(readers(raw)) <= 1

    asyncio.run(run())


def test_what_is_no_stream_concerns_its_own_reader_alone(redis_url: str, raw: redis.Redis, keys: QueueKeys) -> None:
    register(redis_url)

    async def run() -> None:
        async with asyncio.timeout(30), AsyncClient(redis_url) as client:
            good, bad, strange = await submit(client, 3)
            reading = asyncio.create_task(anext(good.events()))
            await until(lambda: readers(raw))
            raw.set(keys.events(bad.id), "no stream")
            raw.xadd(keys.events(strange.id), {"e": b"no event"})
            with pytest.raises(QueueUnavailable, match="WRONGTYPE"):
                await anext(bad.events())
            with pytest.raises(DecodeError):
                await anext(strange.events())
            publish(raw, keys, good, token(0))
            assert await reading == token(0)

    asyncio.run(run())


def test_the_end_of_a_job_whose_read_is_late(
    redis_url: str, raw: redis.Redis, keys: QueueKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that finds its job ended gets the events before the end, though the read of all has not brought them."""
    register(redis_url)
    monkeypatch.setattr(event_stream_module, "_BLOCK", 0.2)

    async def silent(wire: Wire, packed: bytes) -> object:
        return await asyncio.Event().wait()

    monkeypatch.setattr(Wire, "run_packed", silent)

    async def run() -> None:
        async with asyncio.timeout(30), AsyncClient(redis_url) as client:
            (job,) = await submit(client, 1)
            stream = job.events()
            reading = asyncio.create_task(anext(stream))
            await asyncio.sleep(0.1)
            publish(raw, keys, job, token(0), end(job))
            raw.hset(keys.job(job.id), "state", JobState.COMPLETED)
            raw.set(keys.result(job.id), encode(end(job).result))
            assert [await reading, await anext(stream)] == [token(0), end(job)]

    asyncio.run(run())


def test_a_place_that_redis_does_not_take_concerns_its_own_reader_alone(
    redis_url: str, raw: redis.Redis, keys: QueueKeys
) -> None:
    register(redis_url)

    async def run() -> None:
        async with asyncio.timeout(30), AsyncClient(redis_url) as client:
            good, bad = await submit(client, 2)
            reading = asyncio.create_task(anext(good.events()))
            await until(lambda: readers(raw))
            for place in ("9" * 20 + "-0", "0-" + "9" * 20):
                with pytest.raises(InvalidRequest):
                    await anext(bad.events(place))
            last = "-".join(["9" * 19] * 2)
            far = asyncio.create_task(anext(bad.events(last)))
            await asyncio.sleep(0.1)
            publish(raw, keys, good, token(0))
            assert await reading == token(0)
            assert not far.done()
            far.cancel()

    asyncio.run(run())


@contextmanager
def without_unblock(raw: redis.Redis, url: str) -> Iterator[str]:
    raw.execute_command("ACL", "SETUSER", "plain", "on", ">word", "~*", "&*", "+@all", "-client")
    try:
        yield url.replace("redis://", "redis://plain:word@")
    finally:
        raw.execute_command("ACL", "DELUSER", "plain")


def test_without_permission_to_wake_a_read(redis_url: str, raw: redis.Redis, keys: QueueKeys) -> None:
    register(redis_url)

    async def run(url: str) -> None:
        async with asyncio.timeout(30), AsyncClient(url) as client:
            jobs = await submit(client, 5)
            reading = []
            for job in jobs:
                reading.append(asyncio.create_task(anext(job.events())))
                await asyncio.sleep(0.02)
            for job in jobs:
                publish(raw, keys, job, token(0))
            assert await asyncio.gather(*reading) == [token(0)] * 5

    with without_unblock(raw, redis_url) as url:
        asyncio.run(run(url))


def test_an_outage() -> None:
    """Readers are told after `retry_for`, and can read again once Redis is back."""
    with EmbeddedRedis(durable=True) as server:
        register(server.url)

        async def run() -> None:
            async with asyncio.timeout(60), AsyncClient(server.url, retry_for=0.5) as client:
                (job,) = await submit(client, 1)
                stream = job.events()
                reading = asyncio.create_task(anext(stream))
                await asyncio.sleep(0.2)
                server.kill()
                with pytest.raises(QueueUnavailable):
                    await reading
                server.start()
                with redis.Redis.from_url(server.url) as raw:
                    publish(raw, QueueKeys("demo"), job, token(0))
                assert await anext(stream) == token(0)

        asyncio.run(run())


def test_closing_ends_whoever_waits(redis_url: str, raw: redis.Redis) -> None:
    register(redis_url)

    async def run() -> None:
        client = AsyncClient(redis_url)
        jobs = await submit(client, 5)
        reading = [asyncio.create_task(anext(job.events())) for job in jobs]
        await until(lambda: readers(raw))
        await client.aclose()
        for found in await asyncio.gather(*reading, return_exceptions=True):
            assert isinstance(found, ClientClosed)
        with pytest.raises(ClientClosed):
            await anext(jobs[0].events())

    asyncio.run(run())
    assert_alone(raw)
