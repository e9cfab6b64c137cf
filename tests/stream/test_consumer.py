from __future__ import annotations

import asyncio
import time

import pytest
import redis

from millrace_schemas import GROUP, Lane, Request, encode
from millrace_worker.stream.connection import is_transient
from millrace_worker.stream.consumer import BATCH_FIRST_EVERY, MOST_AT_ONCE
from millrace_worker.stream.lease import Verdict
from millrace_worker.stream.room import Room
from queue_probe import QueueProbe
from stream_parts import Parts, with_parts


def pending(probe: QueueProbe) -> int:
    return sum(probe.redis.xpending(lane, GROUP)["pending"] for lane in probe.keys.lanes.values())


def test_leases_what_it_was_asked_for(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        for lane in (Lane.BATCH, Lane.INTERACTIVE):
            for _ in range(5):
                probe.submit([1], lane=lane)
        assert await parts.consumer.next(7, wait=True) == 7
        assert pending(probe) == len(parts.leases) == 7
        assert [job.lease.lane for job in parts.taken] == [Lane.INTERACTIVE] * 5 + [Lane.BATCH] * 2
        assert await parts.consumer.next(7, wait=True) == 3

    with_parts(redis_url, body)


def test_batch_is_not_starved(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        for _ in range(3):
            probe.submit([1], lane=Lane.BATCH)
        for _ in range(40):
            probe.submit([1])
        for _ in range(3 * BATCH_FIRST_EVERY):
            await parts.consumer.next(1, wait=False)
        lanes = [job.lease.lane for job in parts.taken]
        assert lanes.count(Lane.BATCH) == 3
        assert lanes[:BATCH_FIRST_EVERY] == [Lane.INTERACTIVE] * (BATCH_FIRST_EVERY - 1) + [Lane.BATCH]

    with_parts(redis_url, body)


def test_a_read_brings_few_batch_jobs_and_what_each_lane_has_room_for(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        for lane in (Lane.BATCH, Lane.INTERACTIVE):
            for _ in range(MOST_AT_ONCE[Lane.BATCH] + 5):
                probe.submit([1], lane=lane)
        assert await parts.consumer.next(Room(0, {Lane.INTERACTIVE: 3, Lane.BATCH: 2}), wait=False) == 5
        assert await parts.consumer.next(Room(1, {Lane.INTERACTIVE: 1, Lane.BATCH: 1}), wait=False) == 2
        assert await parts.consumer.next(Room(1), wait=False) == 1
        assert await parts.consumer.next(Room(0, {Lane.INTERACTIVE: 1}, frozenset({Lane.INTERACTIVE})), wait=True) == 0
        lanes = [job.lease.lane for job in parts.taken]
        assert (lanes.count(Lane.INTERACTIVE), lanes.count(Lane.BATCH)) == (5, 3)
        assert await parts.consumer.next(100, wait=False) == MOST_AT_ONCE[Lane.BATCH] * 2

    with_parts(redis_url, body)


def test_what_waits_is_leased_in_lots_of_one_round_trip_each(redis_url: str, probe: QueueProbe) -> None:
    most = MOST_AT_ONCE[Lane.INTERACTIVE]

    async def body(parts: Parts) -> None:
        for _ in range(most + 3):
            probe.submit([1])
        probe.redis.config_resetstat()
        assert await parts.consumer.next(Room(most + 50, full=frozenset({Lane.BATCH})), wait=True) == most
        calls = probe.redis.info("commandstats")
        assert "cmdstat_evalsha" in calls or "cmdstat_eval" in calls
        # The script's own, and no other that waits.
        assert calls["cmdstat_xreadgroup"]["calls"] == 1
        assert "cmdstat_xrange" not in calls
        assert await parts.consumer.next(most + 50, wait=True) == 3

    with_parts(redis_url, body)


def test_interactive_jobs_of_several_lots_come_before_batch_jobs(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        most = MOST_AT_ONCE[Lane.INTERACTIVE]
        for _ in range(2 * most + 3):
            probe.submit([1])
            probe.submit([1], lane=Lane.BATCH)
        for _ in range(3):
            await parts.consumer.next(2 * most + 5 - len(parts.taken), wait=True)
        lanes = [job.lease.lane for job in parts.taken]
        assert lanes == [Lane.INTERACTIVE] * (2 * most + 3) + [Lane.BATCH] * 2

    with_parts(redis_url, body)


def test_a_redis_without_memory_gives_no_jobs_out(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        job = probe.submit([1])
        probe.redis.config_set("maxmemory", 1)
        try:
            with pytest.raises(redis.ResponseError) as told:
                await parts.consumer.next(5, wait=False)
        finally:
            probe.redis.config_set("maxmemory", 0)
        assert is_transient(told.value)
        assert pending(probe) == 0
        assert await parts.consumer.next(5, wait=False) == 1
        (taken,) = parts.taken
        assert (taken.lease.job_id, taken.lease.attempt) == (job, 1)
        assert not probe.redis.exists(f"{probe.keys.prefix}tokens:")

    with_parts(redis_url, body)


def test_a_full_batch_lane_lets_an_interactive_job_end_the_wait(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        parts.consumer._block = 60.0
        probe.submit([1], lane=Lane.BATCH)
        full = Room(0, {Lane.INTERACTIVE: 3})
        assert await parts.consumer.next(full, wait=True) == 0, "not for ever: there may soon be room"
        read = asyncio.create_task(parts.consumer.next(full, wait=True))
        job = probe.submit([1])
        while not await read:
            read = asyncio.create_task(parts.consumer.next(full, wait=True))
        assert [leased.lease.job_id for leased in parts.taken] == [job]

    with_parts(redis_url, body)


def test_an_idle_read_with_room_for_one_takes_one(
    redis_url: str, probe: QueueProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(parts: Parts) -> None:
        found = parts.blocking.client_id

        async def jobs_arrive() -> int:
            probe.submit([1], lane=Lane.BATCH)
            probe.submit([1])
            return int(await found())

        # After the lanes were found empty, and before the read that blocks.
        monkeypatch.setattr(parts.blocking, "client_id", jobs_arrive)
        assert await parts.consumer.next(1, wait=True) == 1
        assert pending(probe) == 1

    with_parts(redis_url, body)


def test_wake_ends_a_blocking_read(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        parts.consumer._block = 4.0
        began = time.monotonic()
        read = asyncio.create_task(parts.consumer.next(5, wait=True))
        await asyncio.sleep(0.2)
        await parts.consumer.wake()
        assert await read == 0
        assert time.monotonic() - began < 3

    with_parts(redis_url, body)


def test_verdicts(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        late = probe.submit([1], deadline=probe.now() - 1)
        worn = probe.submit([1])
        probe.redis.hset(probe.keys.job(worn), "attempts", 3)
        fresh = probe.submit([1])
        await parts.consumer.next(5, wait=False)
        found = {job.lease.job_id: (job.verdict, job.lease.attempt) for job in parts.taken}
        assert found == {late: (Verdict.EXPIRED, 0), worn: (Verdict.EXHAUSTED, 3), fresh: (Verdict.RUN, 1)}
        # All of them are leased: the end that follows is fenced like any other.
        assert {probe.job(job)["owner"] for job in found} == {parts.name}

    with_parts(redis_url, body)


def test_odd_keys_do_not_keep_others_from_running(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        lane = probe.keys.lanes[Lane.INTERACTIVE]
        data = encode(Request(model="letters", prompt="x"))
        wrong = probe.submit_bytes(data)
        probe.redis.delete(probe.keys.job(wrong))
        probe.redis.set(probe.keys.job(wrong), "a string")
        bad_tokens, bad_numbers = probe.submit_bytes(data), probe.submit_bytes(data)
        probe.redis.rpush(probe.keys.tokens(bad_tokens), "a list")
        probe.redis.hset(probe.keys.job(bad_numbers), mapping={"attempts": "x", "created_at": "y", "deadline": "z"})
        probe.redis.xadd(lane, {"job": b"\xff\xfe not an id"})
        probe.redis.xadd(lane, {"job": ""})
        good = probe.submit_bytes(data)
        assert await parts.consumer.next(20, wait=False) == 3
        assert [job.lease.job_id for job in parts.taken] == [bad_tokens, bad_numbers, good]
        assert all(job.verdict is Verdict.RUN and job.checkpoint == () for job in parts.taken)
        assert pending(probe) == probe.redis.xlen(lane) == 3
        assert len(probe.dead()) == 3

    with_parts(redis_url, body)


@pytest.mark.parametrize("attempts", ["1.5", "-2", "inf", "nan", "1e300"])
def test_a_count_of_attempts_that_is_none_starts_anew(redis_url: str, probe: QueueProbe, attempts: str) -> None:
    async def body(parts: Parts) -> None:
        job = probe.submit([1])
        probe.redis.hset(probe.keys.job(job), "attempts", attempts)
        leased = await parts.lease_one()
        assert (leased.verdict, leased.lease.attempt) == (Verdict.RUN, 1)

    with_parts(redis_url, body)


def test_a_lost_group_is_made_again_from_the_first_entry(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        job = probe.submit([1])
        probe.redis.xgroup_destroy(probe.keys.lanes[Lane.INTERACTIVE], GROUP)
        assert await parts.reclaimer.claim(5) == 0
        assert await parts.consumer.next(5, wait=True) == 0
        assert await parts.consumer.next(5, wait=True) == 1
        assert parts.taken[0].lease.job_id == job

    with_parts(redis_url, body)


def test_leaving_gives_away_what_was_delivered_and_not_leased(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        job = probe.submit([1])
        probe.redis.xreadgroup(GROUP, parts.name, {probe.keys.lanes[Lane.INTERACTIVE]: ">"})
        await parts.consumer.leave()
        new = parts.other()
        assert await new.reclaimer.claim(5) == 1
        assert new.taken[0].lease.job_id == job
        assert new.taken[0].lease.attempt == 1

    with_parts(redis_url, body)
