"""Waiting: one connection for any number of jobs, and no job is missed when messages are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from fake_worker import FakeWorker, register
from millrace import AsyncClient, AsyncJob, Client, ClientClosed, JobState, QueueUnavailable, Result, ResultTimeout
from millrace import waiter as waiter_module
from millrace.connection import Connection
from millrace.embedded import EmbeddedRedis
from millrace_schemas import QueueKeys, encode


def finish(raw: redis.Redis, keys: QueueKeys, job_id: str, *, tell: bool) -> None:
    """Ends a job by hand; without `tell`, its message is lost."""
    raw.set(keys.result(job_id), encode(Result(id=job_id, model="demo", state=JobState.COMPLETED)))
    raw.hset(keys.job(job_id), "state", "completed")
    if tell:
        raw.publish(keys.done(job_id), "completed")


async def subscribed(raw: redis.Redis, keys: QueueKeys, jobs: int) -> None:
    """Returns once `jobs` done channels have a subscriber."""
    while len(await asyncio.to_thread(raw.pubsub_channels, keys.done("*"))) < jobs:
        await asyncio.sleep(0.01)


def test_500_waits_share_one_connection(redis_url: str, raw: redis.Redis, keys: QueueKeys) -> None:
    async def run() -> None:
        async with AsyncClient(redis_url) as client:
            jobs = await client.submit_many({"prompt": f"p{i}"} for i in range(500))
            waits = [asyncio.create_task(job.result(timeout=60)) for job in jobs]
            await subscribed(raw, keys, 500)
            listening = [c for c in raw.client_list() if int(c["sub"]) > 0]
            assert len(listening) == 1
            assert int(listening[0]["sub"]) == 500
            assert len(raw.client_list()) <= 16 + 1 + 3
            worker.release()
            results = await asyncio.gather(*waits)
            assert [r.text for r in results] == [f"P{i}" for i in range(500)]

    with FakeWorker(redis_url, hold=True) as worker:
        asyncio.run(run())


def test_several_waits_for_one_job(redis_url: str) -> None:
    async def run() -> None:
        async with AsyncClient(redis_url) as client:
            job = await client.submit("hi")
            waits = [asyncio.create_task(job.result(timeout=30)) for _ in range(5)]
            waits[0].cancel()
            await asyncio.sleep(0.1)
            worker.release()
            results = await asyncio.gather(*waits[1:])
            assert {r.text for r in results} == {"HI"}

    with FakeWorker(redis_url, hold=True) as worker:
        asyncio.run(run())


def test_a_wait_that_is_over_leaves_the_job_alone(client: Client) -> None:
    job = client.submit("hi")
    with pytest.raises(ResultTimeout, match=r"no result after 0.05 s; the job goes on"):
        job.result(timeout=0.05)
    with pytest.raises(ResultTimeout, match="no result yet"):
        job.result(timeout=0)
    assert isinstance(ResultTimeout("x"), TimeoutError)
    assert job.state() == JobState.QUEUED


def test_waiting_again_after_a_wait_that_was_over(
    client: Client, raw: redis.Redis, keys: QueueKeys, later: Callable[..., None]
) -> None:
    job = client.submit("hi")
    with pytest.raises(ResultTimeout):
        job.result(timeout=0.2)
    later(0.2, finish, raw, keys, job.id, tell=True)
    began = time.monotonic()
    assert job.result(timeout=20).id == job.id
    # Long before the safety net would find it.
    assert time.monotonic() - began < waiter_module.RECHECK - 1


def test_asking_again_is_answered_at_once(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiter_module, "RECHECK", 1000.0)
    with FakeWorker(redis_url), Client(redis_url) as client:
        job = client.submit("hi")
        for _ in range(3):
            # The channel of the first wait is still subscribed, so no confirmation will make the second one look.
            assert job.result(timeout=20).text == "HI"


def test_a_job_that_ends_between_two_reads_of_one_look(
    client: Client, raw: redis.Redis, keys: QueueKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its result is not there, and then its state says that it has ended."""
    job = client.submit("hi")
    run = Connection.run

    async def ends_before_its_state_is_read(self: Connection, *commands: Any, size: int = 0) -> list[Any]:
        if commands and commands[0][0] == "HGET":
            finish(raw, keys, job.id, tell=False)
        return await run(self, *commands, size=size)

    monkeypatch.setattr(Connection, "run", ends_before_its_state_is_read)
    assert job.result(timeout=0).state == JobState.COMPLETED


def test_a_lost_message_is_made_good(
    redis_url: str, raw: redis.Redis, keys: QueueKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiter_module, "RECHECK", 0.2)
    register(redis_url)

    async def run() -> None:
        async with AsyncClient(redis_url) as client:
            job = await client.submit("hi")
            wait = asyncio.create_task(job.result(timeout=20))
            await subscribed(raw, keys, 1)
            finish(raw, keys, job.id, tell=False)
            assert (await wait).id == job.id

    asyncio.run(run())


def test_a_result_that_comes_while_the_subscription_is_down(
    redis_url: str, raw: redis.Redis, keys: QueueKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiter_module, "RECHECK", 1000.0)
    register(redis_url)

    async def run() -> None:
        async with AsyncClient(redis_url) as client:
            first, second = await client.submit_many([{"prompt": "a"}, {"prompt": "b"}])
            waits = [asyncio.create_task(job.result(timeout=30)) for job in (first, second)]
            await subscribed(raw, keys, 2)
            # Its message is lost with the connection; the look after the reconnect finds it.
            with raw.pipeline(transaction=True) as pipe:
                finish(pipe, keys, first.id, tell=False)
                pipe.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                pipe.execute()
            assert (await waits[0]).id == first.id
            # The new subscription works, too.
            await subscribed(raw, keys, 1)
            finish(raw, keys, second.id, tell=True)
            assert (await waits[1]).id == second.id

    asyncio.run(run())


def test_a_redis_that_restarts_while_somebody_waits(keys: QueueKeys, tmp_path) -> None:
    async def run(server: EmbeddedRedis) -> None:
        register(server.url)
        async with AsyncClient(server.url) as client:
            job = await client.submit("hi")
            wait = asyncio.create_task(job.result(timeout=60))
            with redis.Redis.from_url(server.url) as raw:
                await subscribed(raw, keys, 1)
            server.stop()
            await asyncio.sleep(0.3)
            server.start()
            with redis.Redis.from_url(server.url) as raw:
                finish(raw, keys, job.id, tell=False)
            assert (await wait).id == job.id

    with EmbeddedRedis(tmp_path, durable=True) as server:
        asyncio.run(run(server))


def test_a_redis_that_stays_away_ends_the_wait(keys: QueueKeys) -> None:
    async def run(server: EmbeddedRedis) -> None:
        register(server.url)
        async with AsyncClient(server.url, retry_for=0.5) as client:
            job = await client.submit("hi")
            wait = asyncio.create_task(job.result())
            with redis.Redis.from_url(server.url) as raw:
                await subscribed(raw, keys, 1)
            server.kill()
            with pytest.raises(QueueUnavailable, match=r"no Redis at redis://127.0.0.1"):
                await wait

    with EmbeddedRedis() as server:
        asyncio.run(run(server))


def test_closing_ends_waits(redis_url: str) -> None:
    register(redis_url)

    async def run() -> None:
        client = AsyncClient(redis_url)
        job: AsyncJob = await client.submit("hi")
        wait = asyncio.create_task(job.result())
        await asyncio.sleep(0.05)
        await client.aclose()
        with pytest.raises(ClientClosed, match="the job goes on"):
            await wait
        with pytest.raises(ClientClosed):
            await job.result()

    asyncio.run(run())


def test_the_subscription_ends_when_nobody_waits(
    redis_url: str, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiter_module, "RECHECK", 0.1)

    async def run() -> None:
        async with AsyncClient(redis_url) as client:
            for _ in range(2):
                assert (await (await client.submit("hi")).result(timeout=30)).text == "HI"
                while any(int(c["sub"]) for c in raw.client_list()):
                    await asyncio.sleep(0.02)

    with FakeWorker(redis_url):
        asyncio.run(run())
