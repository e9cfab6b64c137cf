"""Redis at its worst: lost replies, no server, a wrong password, an old one."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest
import redis

from fake_worker import FakeWorker, register
from millrace import AsyncClient, Client, JobState, PartlySubmitted, QueueUnavailable
from millrace.connection import check_version, load_script
from millrace.embedded import EmbeddedRedis, free_port
from millrace_schemas import QueueKeys
from proxy import LossyProxy


@pytest.mark.parametrize("cut", [True, False], ids=["connection cut", "silence"])
def test_a_lost_reply_makes_no_second_job(
    redis_server: EmbeddedRedis, redis_url: str, raw: redis.Redis, keys: QueueKeys, cut: bool
) -> None:
    register(redis_url)
    raw.script_load(load_script("enqueue")[0])
    with LossyProxy(redis_server, cut=cut) as proxy, Client(proxy.url, socket_timeout=0.3) as client:
        client.submit("first")
        proxy.lose(2)
        job = client.submit("second")
        assert proxy.lost == 2
        assert raw.xlen(keys.lanes["interactive"]) == 2
        assert len(raw.keys(keys.job("*"))) == 2
        assert job.state() == JobState.QUEUED


def test_lost_replies_of_many_jobs(
    redis_server: EmbeddedRedis, redis_url: str, raw: redis.Redis, keys: QueueKeys
) -> None:
    register(redis_url)
    raw.script_load(load_script("enqueue")[0])
    with LossyProxy(redis_server) as proxy, Client(proxy.url) as client:
        proxy.lose(3)
        jobs = client.submit_many({"prompt": f"p{i}", "idempotency_key": f"k{i % 600}"} for i in range(700))
        assert proxy.lost == 3
        assert [job.id for job in jobs[600:]] == [job.id for job in jobs[:100]]
        ids = [fields[b"job"].decode() for _, fields in raw.xrange(keys.lanes["interactive"])]
        assert sorted(ids) == sorted({job.id for job in jobs})
        assert len(ids) == 600


def test_a_lost_reply_of_cancel(redis_server: EmbeddedRedis, redis_url: str, raw: redis.Redis, keys: QueueKeys) -> None:
    register(redis_url)
    raw.script_load(load_script("cancel")[0])
    with LossyProxy(redis_server) as proxy, Client(proxy.url) as client:
        job = client.submit("a", stream=True)
        proxy.lose(1)
        assert job.cancel() == JobState.CANCELLED
        assert proxy.lost == 1
        assert raw.xlen(keys.events(job.id)) == 1


def test_many_jobs_with_a_redis_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedRedis() as server:
        register(server.url)
        enqueue, calls = AsyncClient._enqueue, []

        async def die(self, submissions):
            calls.append(submissions)
            if len(calls) == 2:
                server.kill()
            return await enqueue(self, submissions)

        monkeypatch.setattr(AsyncClient, "_enqueue", die)
        with Client(server.url, retry_for=0.3) as client:
            with pytest.raises(PartlySubmitted, match=r"256 of 300 jobs are queued.*no Redis at") as caught:
                client.submit_many({"prompt": "a"} for _ in range(300))
            assert caught.value.submitted == tuple(s.id for s in calls[0])
            assert caught.value.unsure == tuple(s.id for s in calls[1])


def test_scripts_come_back_after_a_flush(client: Client, raw: redis.Redis, keys: QueueKeys) -> None:
    client.submit("a")
    raw.script_flush()
    client.submit_many([{"prompt": "a"}, {"prompt": "b"}])
    assert raw.xlen(keys.lanes["interactive"]) == 3


def test_a_redis_that_restarts_between_two_calls(tmp_path) -> None:
    with EmbeddedRedis(tmp_path, durable=True) as server, Client(server.url) as client:
        register(server.url)
        first = client.submit("a")
        server.stop()
        starting = threading.Timer(0.3, server.start)
        starting.start()
        second = client.submit("b")
        starting.join()
        assert (first.state(), second.state()) == (JobState.QUEUED, JobState.QUEUED)


def test_no_redis() -> None:
    url = f"redis://user:secret@127.0.0.1:{free_port()}/0"
    began = time.monotonic()
    with Client(url) as client:
        for ask in (lambda: client.submit("a"), client.models, lambda: client.result("demo-" + "0" * 26, 5)):
            with pytest.raises(QueueUnavailable, match=r"^no Redis at redis://127.0.0.1:\d+/0: ") as caught:
                ask()
            assert "secret" not in str(caught.value)
            assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 60


def test_a_host_that_takes_connections_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with (
            Client(url, socket_timeout=0.2, retry_for=0.5) as client,
            pytest.raises(QueueUnavailable, match=r"^no Redis at .*no answer within"),
        ):
            client.submit("a")


@pytest.mark.parametrize(
    "url", ["", "localhost:6379", "http://localhost", "redis://localhost:99999999/0", "redis://localhost?nonsense=1"]
)
def test_no_redis_url(url: str) -> None:
    with pytest.raises(QueueUnavailable, match=r"is no Redis URL.*redis://host:6379/0"):
        Client(url)


def test_no_redis_url_is_told_as_it_was_given() -> None:
    with pytest.raises(QueueUnavailable, match=r"^localhost:6379 is no Redis URL"):
        Client("localhost:6379")
    for url in ("me:s3cret@localhost:6379", "redis://:s3/cret@localhost"):
        with pytest.raises(QueueUnavailable, match=r"^the given address is no Redis URL(?!.*s3)"):
            Client(url)


def test_wrong_and_missing_passwords() -> None:
    with EmbeddedRedis() as server:
        with redis.Redis.from_url(server.url) as raw:
            raw.config_set("requirepass", "right")
        for user in ("", ":wrong@", "nobody:wrong@"):
            with Client(server.url.replace("//", f"//{user}")) as client:
                for ask in (lambda: client.submit("a"), lambda: client.result("demo-" + "0" * 26, 5)):
                    with pytest.raises(QueueUnavailable, match="refuses the user name or password") as caught:
                        ask()
                    assert "wrong@" not in str(caught.value)
        url = server.url.replace("//", "//:right@")
        register(url)
        with Client(url) as client:
            assert client.submit("a").state() == JobState.QUEUED


def test_a_user_who_may_too_little() -> None:
    with EmbeddedRedis() as server:
        with redis.Redis.from_url(server.url) as raw:
            raw.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+time", "+get", "+zrangebyscore")
        register(server.url)
        with (
            Client(server.url.replace("//", "//reader:pw@")) as client,
            pytest.raises(QueueUnavailable, match=r"does not permit this user what Millrace needs.*evalsha"),
        ):
            client.submit("a")


def test_a_redis_without_memory() -> None:
    with EmbeddedRedis() as server, Client(server.url) as client:
        register(server.url)
        client.submit("a")
        with redis.Redis.from_url(server.url) as raw:
            raw.config_set("maxmemory", "1")
        with pytest.raises(QueueUnavailable, match="out of memory"):
            client.submit("a")


def test_a_read_only_replica(redis_server: EmbeddedRedis) -> None:
    with EmbeddedRedis() as server:
        register(server.url)
        with redis.Redis.from_url(server.url) as raw:
            raw.execute_command("CONFIG", "SET", "replica-serve-stale-data", "yes")
            raw.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))
        with Client(server.url, retry_for=0.3) as client, pytest.raises(QueueUnavailable, match="read only replica"):
            client.submit("a")


def test_versions() -> None:
    for version in ("6.2.0", "6.2.14", "7.0.15", "8.10.1", "255.255.255"):
        check_version(version, "here")
    for version in ("5.0.14", "6.0.20", "2.8.4"):
        with pytest.raises(QueueUnavailable, match=rf"is version {version}; Millrace needs 6.2 or newer"):
            check_version(version, "here")


def test_many_calls_at_once_share_few_connections(redis_url: str, raw: redis.Redis) -> None:
    async def run() -> None:
        async with AsyncClient(redis_url) as client:
            jobs = await asyncio.gather(*(client.submit(f"p{i}") for i in range(300)))
            states = await asyncio.gather(*(job.state() for job in jobs))
            assert set(states) <= set(JobState)
            assert len(raw.client_list()) <= 16 + 3

    with FakeWorker(redis_url):
        asyncio.run(run())


def test_a_cancelled_call_is_over_whenever_it_was_cancelled(redis_url: str) -> None:
    """redis-py writes through wait_for, which in Python 3.11 swallows a cancellation as the write is done."""

    async def run() -> None:
        async with AsyncClient(redis_url) as client:
            await client.models()
            for steps in [*range(12)] * 10:
                task = asyncio.create_task(client.models())
                for _ in range(steps):
                    await asyncio.sleep(0)
                if not task.done():
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task

    asyncio.run(run())
