"""The blocking client: shared by threads, one background thread of its own."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from fake_worker import FakeWorker, register
from millrace import AsyncClient, AsyncJob, Client, ClientClosed, Job
from millrace.portal import Portal


def test_threads_share_a_client(redis_url: str, raw: redis.Redis) -> None:
    def ask(i: int) -> str:
        return client.submit(f"p{i}").result(timeout=30).text

    with FakeWorker(redis_url), Client(redis_url) as client, ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(200))) == [f"P{i}" for i in range(200)]
        assert sum(int(c["sub"]) > 0 for c in raw.client_list()) == 1
        assert sum(t.name == "millrace-client" for t in threading.enumerate()) == 1
    assert all(t.name != "millrace-client" for t in threading.enumerate())


def test_it_has_every_method_of_the_asynchronous_one() -> None:
    for blocking, asynchronous in ((Client, AsyncClient), (Job, AsyncJob)):
        names = {n for n in dir(asynchronous) if not n.startswith("_")} - {"aclose"}
        assert names <= set(dir(blocking)) | {"model"}
        for name in names:
            theirs = getattr(asynchronous, name)
            if not inspect.iscoroutinefunction(theirs):
                continue
            ours = getattr(blocking, name)
            assert ours.__doc__ == theirs.__doc__
            assert str(inspect.signature(ours)).split("->")[0] == str(inspect.signature(theirs)).split("->")[0]


def test_a_closed_client_says_so(redis_url: str) -> None:
    register(redis_url)
    client = Client(redis_url)
    job = client.submit("a")
    client.close()
    client.close()
    for ask in (client.models, job.state, lambda: client.submit("a"), lambda: next(client.events(job.id))):
        with pytest.raises(ClientClosed, match="the client is closed"):
            ask()


def test_closing_while_another_thread_waits(redis_url: str) -> None:
    register(redis_url)
    client = Client(redis_url)
    job = client.submit("a")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(job.result)
        with pytest.raises(TimeoutError):
            waiting.exception(timeout=0.2)
        client.close()
        with pytest.raises(ClientClosed):
            waiting.result(timeout=10)


def test_closing_while_another_thread_asks_for_what_no_connection_knows_of(redis_url: str) -> None:
    """A result of S3, for example, is fetched beside the connections that `aclose` closes."""
    client, begun = Client(redis_url), threading.Event()

    async def fetch() -> None:
        begun.set()
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as pool:
        fetching = pool.submit(lambda: client._portal.run(fetch()))
        assert begun.wait(10)
        client.close()
        assert isinstance(fetching.exception(timeout=10), ClientClosed)


def test_asking_just_as_another_thread_closes(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client, looked, closed = Client(redis_url), threading.Event(), threading.Event()
    unusable = Portal._unusable

    def then_wait(portal: Portal) -> str | None:
        found = unusable(portal)
        if threading.current_thread().name.startswith("asks"):
            looked.set()
            closed.wait(0.5)
        return found

    monkeypatch.setattr(Portal, "_unusable", then_wait)
    with ThreadPoolExecutor(1, thread_name_prefix="asks") as pool:
        asking = pool.submit(client.models)
        assert looked.wait(10)
        client.close()
        closed.set()
        # It came before the end, or after it.
        assert isinstance(asking.exception(timeout=10), ClientClosed | None)


def test_two_threads_close(redis_url: str) -> None:
    for _ in range(50):
        client, together = Client(redis_url), threading.Barrier(2)

        def close(client: Client = client, together: threading.Barrier = together) -> None:
            together.wait()
            client.close()

        with ThreadPoolExecutor(2) as pool:
            for closing in [pool.submit(close), pool.submit(close)]:
                closing.result(timeout=10)
        assert client._portal.closed
    assert all(t.name != "millrace-client" for t in threading.enumerate())


def test_a_client_works_inside_a_coroutine_of_the_caller(redis_url: str) -> None:
    """It blocks the caller's loop, as any blocking call does, but it does not dead-lock."""
    register(redis_url)

    async def run() -> None:
        with Client(redis_url) as client:
            client.submit("a")

    asyncio.run(run())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told(redis_url: str) -> None:
    register(redis_url)
    with Client(redis_url) as client:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                client.models()
            except ClientClosed as e:
                os.write(write, str(e).encode())
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        os.close(write)
        assert os.read(read, 1000) == b"this client was made before a fork; make one in each process"
        os.close(read)
        assert client.models()
