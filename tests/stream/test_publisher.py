"""The order of a job's last writes, and what Redis may refuse for a while."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
import redis.asyncio

from millrace_schemas import Finished, Tokens
from millrace_worker.stream import publisher
from millrace_worker.stream.closing import GiveBack
from millrace_worker.stream.progress import Progress
from millrace_worker.stream.scripts import Call, run
from queue_probe import QueueProbe
from stream_parts import Parts, ending_of, result_of, with_parts


async def settle(parts: Parts, closing: asyncio.Task[bool]) -> bool:
    writer = asyncio.create_task(parts.publisher.run())
    written = await closing
    parts.publisher.stop()
    await writer
    return written


def tokens_of(probe: QueueProbe, job: str) -> list[Tokens]:
    return [event for event in probe.events(job) if isinstance(event, Tokens)]


def test_the_last_tokens_come_once_and_before_the_end(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        job = probe.submit([1], stream=True)
        leased = await parts.lease_one()
        progress = Progress(leased.lease, [], stream=True)
        parts.publisher.follow(progress)
        progress.tokens += [5, 6]
        progress.add_text("ab")
        closing = asyncio.create_task(parts.publisher.finish(ending_of(leased, progress=progress)))
        await asyncio.sleep(0)
        assert await settle(parts, closing)
        assert tokens_of(probe, job) == [Tokens(0, (5, 6), "ab")]
        assert probe.events(job)[-1] == Finished(result_of(leased))
        assert len(parts.leases) == 0

    with_parts(redis_url, body)


def test_a_result_is_sent_once_unless_the_job_streams(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        sent = {}
        for stream in (False, True):
            probe.submit([1], stream=stream)
            leased = await parts.lease_one()
            ending = ending_of(leased, progress=Progress(leased.lease, [], stream=stream))
            arguments = ending.call(probe.keys, parts.name, 60).args
            sent[stream] = sum(b"text" in a for a in arguments if isinstance(a, bytes))
        assert sent == {False: 1, True: 2}

    with_parts(redis_url, body)


def test_an_unconfirmed_checkpoint_is_confirmed_before_the_end(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        job = probe.submit([1], stream=True)
        leased = await parts.lease_one()
        progress = Progress(leased.lease, [], stream=True)
        progress.tokens += [5, 6]
        # Written, and the reply never came.
        await run(parts.client, progress.call(probe.keys, parts.name))
        progress.tokens += [7]
        closing = asyncio.create_task(parts.publisher.finish(ending_of(leased, progress=progress)))
        assert await settle(parts, closing)
        assert tokens_of(probe, job) == [Tokens(0, (5, 6), ""), Tokens(2, (7,), "")]

    with_parts(redis_url, body)


def test_a_job_is_given_back_with_all_its_tokens(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        job = probe.submit([1])
        leased = await parts.lease_one()
        progress = Progress(leased.lease, [], stream=False)
        progress.tokens += [5, 6, 7]
        closing = asyncio.create_task(parts.publisher.give_back(GiveBack(leased.lease, "handover", progress)))
        assert await settle(parts, closing)
        assert probe.checkpoint(job) == 3
        assert probe.state(job) == "queued"

    with_parts(redis_url, body)


def test_a_lost_lease_is_told(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        job = probe.submit([1])
        leased = await parts.lease_one()
        probe.redis.hset(probe.keys.job(job), "owner", "somebody")
        progress = Progress(leased.lease, [], stream=False)
        parts.publisher.follow(progress)
        progress.tokens += [5]
        writer = asyncio.create_task(parts.publisher.run())
        while not parts.lost:
            await asyncio.sleep(0.01)
        assert parts.lost == [leased.lease]
        assert not await parts.publisher.finish(ending_of(leased, progress=progress))
        parts.publisher.stop()
        await writer
        assert probe.result(job) is None

    with_parts(redis_url, body)


def test_full_memory_is_waited_for(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        job = probe.submit([1])
        leased = await parts.lease_one()
        probe.redis.config_set("maxmemory", 1)
        try:
            closing = asyncio.create_task(parts.publisher.finish(ending_of(leased)))
            writer = asyncio.create_task(parts.publisher.run())
            # Longer than all tries of what Redis refuses for good.
            parts.publisher._backoff._most = 0.02
            await asyncio.sleep(0.5)
            assert not closing.done()
        finally:
            probe.redis.config_set("maxmemory", 0)
        assert await closing
        parts.publisher.stop()
        await writer
        assert probe.state(job) == "completed"

    with_parts(redis_url, body)


def test_what_cannot_be_written_down_hurts_nobody_else(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        bad, good = probe.submit([1]), probe.submit([1])
        await parts.consumer.next(2, wait=False)
        endings = {job.lease.job_id: ending_of(job) for job in parts.taken}
        endings[bad].result = msgspec.structs.replace(result_of(parts.taken[0]), metadata={"k": "\ud800"})
        closing = [asyncio.create_task(parts.publisher.finish(endings[job])) for job in (bad, good)]
        writer = asyncio.create_task(parts.publisher.run())
        assert await asyncio.gather(*closing) == [False, True]
        parts.publisher.stop()
        await writer
        assert probe.state(good) == "completed"
        assert len(parts.leases) == 0

    with_parts(redis_url, body)


def test_a_round_is_no_longer_than_can_be_sent_in_time(
    redis_url: str, probe: QueueProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Endings of 2 MB each, together more than a round: all are written, some of them in a later one."""
    rounds: list[int] = []
    send = publisher.run_many

    async def counted(client: redis.asyncio.Redis, calls: list[Call]) -> list[Any]:
        rounds.append(sum(len(arg) for call in calls for arg in call.args if isinstance(arg, bytes)))
        return await send(client, calls)

    async def body(parts: Parts) -> None:
        monkeypatch.setattr(publisher, "run_many", counted)
        monkeypatch.setattr(publisher, "_ROUND_BYTES", 2_500_000)
        closings = []
        for _ in range(6):
            probe.submit([1])
            leased = await parts.lease_one()
            ending = ending_of(leased)
            choice = msgspec.structs.replace(ending.result.choices[0], text="x" * 1_000_000)
            ending.result = msgspec.structs.replace(ending.result, choices=(choice,))
            closings.append(asyncio.create_task(parts.publisher.finish(ending)))
        await asyncio.sleep(0)
        assert await settle(parts, asyncio.gather(*closings))
        assert len(parts.leases) == 0

    with_parts(redis_url, body)
    assert len(rounds) >= 2
    assert max(rounds) < 5_000_000
