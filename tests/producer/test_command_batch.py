"""Commands of many callers share round trips; what goes wrong for one concerns that one."""

from __future__ import annotations

import asyncio

import pytest
import redis

from fake_worker import register
from millrace import AsyncClient, ClientClosed, QueueUnavailable
from millrace.command_batch import CommandBatcher
from millrace.wire import Command
from millrace_schemas import QueueKeys


class Server:
    """Answers each command with its argument, when it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[Command]] = []
        self.open = asyncio.Event()
        self.error: Exception | None = None

    async def send(self, commands: list[Command]) -> list[object]:
        self.batches.append(commands)
        await self.open.wait()
        if self.error is not None:
            raise self.error
        return [argument for _, argument in commands]


def test_a_lone_command_leaves_at_once_and_a_crowd_together() -> None:
    async def run() -> None:
        server = Server()
        batcher = CommandBatcher(server.send)
        first = asyncio.create_task(batcher.run([("ECHO", 0)]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(server.batches) == 1
        crowd = [asyncio.create_task(batcher.run([("ECHO", i), ("ECHO", -i)])) for i in range(1, 101)]
        server.open.set()
        assert await first == [0]
        assert await asyncio.gather(*crowd) == [[i, -i] for i in range(1, 101)]
        assert len(server.batches) == 2

    asyncio.run(run())


def test_no_commands_wait_for_nobody() -> None:
    """A result that is there asks for no state: others' batches, or Redis's absence, are not to keep it then."""

    async def run() -> None:
        server = Server()
        batcher = CommandBatcher(server.send)
        others = [asyncio.create_task(batcher.run([("ECHO", i)])) for i in range(3)]
        await asyncio.sleep(0.01)
        under_way = len(server.batches)
        async with asyncio.timeout(5):
            assert await batcher.run([]) == []
        assert len(server.batches) == under_way
        server.open.set()
        await asyncio.gather(*others)

    asyncio.run(run())


def test_a_slow_batch_holds_up_nobody_for_long() -> None:
    async def run() -> None:
        server = Server()
        batcher = CommandBatcher(server.send)
        tasks = []
        async with asyncio.timeout(20):
            for i in range(5):
                tasks.append(asyncio.create_task(batcher.run([("ECHO", i)])))
                while len(server.batches) <= i:
                    await asyncio.sleep(0.01)
        server.open.set()
        assert await asyncio.gather(*tasks) == [[i] for i in range(5)]

    asyncio.run(run())


def test_each_caller_gets_an_error_of_its_own() -> None:
    async def run() -> None:
        server = Server()
        server.error = QueueUnavailable("away")
        server.open.set()
        batcher = CommandBatcher(server.send)
        found = await asyncio.gather(*(batcher.run([("ECHO", i)]) for i in range(3)), return_exceptions=True)
        assert all(type(error) is QueueUnavailable and str(error) == "away" for error in found)
        assert len({id(error) for error in found}) == 3

    asyncio.run(run())


def test_callers_that_leave_and_a_close() -> None:
    async def run() -> None:
        server = Server()
        batcher = CommandBatcher(server.send)
        tasks = [asyncio.create_task(batcher.run([("ECHO", 0)])) for _ in range(4)]
        await asyncio.sleep(0.01)
        later = asyncio.create_task(batcher.run([("ECHO", 1)]))
        tasks[0].cancel()
        await asyncio.sleep(0.01)
        await batcher.close()
        for found in await asyncio.gather(*tasks[1:], later, return_exceptions=True):
            assert isinstance(found, ClientClosed)
        with pytest.raises(ClientClosed):
            await batcher.run([("ECHO", 2)])

    asyncio.run(run())


def test_a_close_at_any_turn_leaves_nobody_waiting() -> None:
    async def run() -> None:
        for turns in range(6):
            for under_way in range(2):
                server = Server()
                batcher = CommandBatcher(server.send)
                tasks = [asyncio.create_task(batcher.run([("ECHO", i)])) for i in range(under_way)]
                await asyncio.sleep(0.01)
                tasks.append(asyncio.create_task(batcher.run([("ECHO", 1)])))
                for _ in range(turns):
                    await asyncio.sleep(0)
                await batcher.close()
                sent = len(server.batches)
                async with asyncio.timeout(20):
                    for found in await asyncio.gather(*tasks, return_exceptions=True):
                        assert isinstance(found, ClientClosed), turns
                assert len(server.batches) == sent, "a command left after the close"

    asyncio.run(run())


def test_many_bytes_leave_in_parts() -> None:
    async def run() -> None:
        server = Server()
        server.open.set()
        batcher = CommandBatcher(server.send)
        await asyncio.gather(*(batcher.run([("ECHO", i)], 1024 * 1024) for i in range(10)))
        assert sorted(map(len, server.batches)) == [2, 4, 4]

    asyncio.run(run())


def test_submits_share_round_trips(redis_url: str, raw: redis.Redis) -> None:
    register(redis_url)

    async def run() -> None:
        async with AsyncClient(redis_url) as client:
            await client.submit("a")
            jobs = await asyncio.gather(*(client.submit(f"p{i}", idempotency_key=f"k{i}") for i in range(200)))
            assert len({job.id for job in jobs}) == 200
            again = await asyncio.gather(*(client.submit("x", idempotency_key=f"k{i}") for i in range(200)))
            assert [job.id for job in again] == [job.id for job in jobs]
            assert len(raw.client_list()) <= 8

    asyncio.run(run())


def test_a_refused_command_harms_no_neighbour(redis_url: str, raw: redis.Redis) -> None:
    register(redis_url)
    raw.rpush(QueueKeys("demo").idempotency("bad"), "no string")

    async def run() -> None:
        async with AsyncClient(redis_url) as client:
            calls = [client.submit("a", idempotency_key="bad" if i == 7 else f"k{i}") for i in range(20)]
            found = await asyncio.gather(*calls, return_exceptions=True)
            errors = [i for i, job in enumerate(found) if isinstance(job, BaseException)]
            assert errors == [7]
            assert isinstance(found[7], QueueUnavailable)

    asyncio.run(run())


def test_scripts_that_the_server_forgot(redis_url: str, raw: redis.Redis) -> None:
    register(redis_url)

    async def run() -> None:
        async with AsyncClient(redis_url) as client:
            await client.submit("a")
            raw.script_flush()
            jobs = await asyncio.gather(*(client.submit("a") for _ in range(50)))
            assert len({job.id for job in jobs}) == 50

    asyncio.run(run())
