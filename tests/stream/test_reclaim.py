from __future__ import annotations

import asyncio
from typing import Any

import pytest

from millrace_schemas import GROUP, Lane
from millrace_worker.stream.closing import GiveBack
from millrace_worker.stream.publisher import Publisher
from millrace_worker.stream.scripts import LEAVE, Call, run
from millrace_worker.stream.upkeep import Upkeep
from queue_probe import QueueProbe
from stream_parts import Parts, with_parts


def abandon(probe: QueueProbe, parts: Parts, idle_ms: int = 5000) -> None:
    """Makes every lease of `parts` look as if its heartbeat had stopped."""
    for lease in parts.leases.all():
        lane = probe.keys.lanes[lease.lane]
        probe.redis.xclaim(lane, GROUP, parts.name, 0, [lease.entry], idle=idle_ms, justid=True)


def test_takes_over_only_what_is_abandoned(redis_url: str, probe: QueueProbe) -> None:
    async def body(dead: Parts) -> None:
        for lane in Lane:
            probe.submit([1], lane=lane)
        await dead.consumer.next(2, wait=False)
        live = dead.other("w3")
        probe.submit([1])
        await live.consumer.next(1, wait=False)
        abandon(probe, dead)
        taker = dead.other()
        assert await taker.reclaimer.claim(10) == 2
        assert {job.lease.attempt for job in taker.taken} == {2}
        assert not taker.reclaimer.due

    with_parts(redis_url, body)


def test_never_more_than_there_is_room_for(redis_url: str, probe: QueueProbe) -> None:
    async def body(dead: Parts) -> None:
        for _ in range(30):
            probe.submit([1])
        await dead.consumer.next(30, wait=False)
        abandon(probe, dead)
        taker = dead.other()
        while len(taker.taken) < 30:
            taker.reclaimer._next = 0.0
            assert await taker.reclaimer.claim(4) <= 4
        assert len({job.lease.job_id for job in taker.taken}) == 30

    with_parts(redis_url, body)


def test_the_cursor_reaches_entries_behind_many_live_ones(redis_url: str, probe: QueueProbe) -> None:
    async def body(live: Parts) -> None:
        for _ in range(100):
            probe.submit([1])
        while len(live.taken) < 100:
            await live.consumer.next(100, wait=False)
        job = probe.submit([1])
        dead = live.other("w3")
        await dead.consumer.next(1, wait=False)
        abandon(probe, dead)
        taker = live.other()
        for _ in range(30):
            taker.reclaimer._next = 0.0
            await taker.reclaimer.claim(1)
        assert [taken.lease.job_id for taken in taker.taken] == [job]

    with_parts(redis_url, body)


def test_waits_a_lease_after_an_outage(redis_url: str, probe: QueueProbe) -> None:
    async def body(dead: Parts) -> None:
        probe.submit([1])
        await dead.lease_one()
        abandon(probe, dead)
        taker = dead.other()
        taker.reclaimer.outage()
        assert taker.reclaimer.due
        assert await taker.reclaimer.claim(5) == 0
        taker.reclaimer._next = 0.0
        assert await taker.reclaimer.claim(5) == 0
        await asyncio.sleep(1.05)
        taker.reclaimer._next = 0.0
        assert await taker.reclaimer.claim(5) == 1

    with_parts(redis_url, body)


def test_jobs_handed_over_while_it_looks_for_such(
    redis_url: str, probe: QueueProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie where this look has been, so the message that comes with them asks for another one."""

    async def body(draining: Parts) -> None:
        job = probe.submit([1])
        leased = await draining.lease_one()
        taker = draining.other()
        taker.reclaimer._next = float("inf")
        claim = taker.reclaimer._claim

        async def then_hand_over(lane: Lane, *rest: Any) -> tuple[str, int]:
            found = await claim(lane, *rest)
            if lane is Lane.INTERACTIVE:
                monkeypatch.undo()
                assert await run(taker.client, GiveBack(leased.lease, "handover").call(probe.keys, draining.name, 60))
                taker.reclaimer.hand_over_seen()
            return found

        monkeypatch.setattr(taker.reclaimer, "_claim", then_hand_over)
        assert await taker.reclaimer.claim(5) == 0
        assert taker.reclaimer.due
        assert await taker.reclaimer.claim(5) == 1
        assert [taken.lease.job_id for taken in taker.taken] == [job]
        assert not taker.reclaimer.due

    with_parts(redis_url, body)


def test_a_look_for_handed_over_jobs_that_failed_is_made_again(
    redis_url: str, probe: QueueProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(parts: Parts) -> None:
        parts.reclaimer._next = float("inf")

        async def fail(*args: Any) -> tuple[str, int]:
            raise ConnectionError

        with monkeypatch.context() as patch:
            patch.setattr(parts.reclaimer, "_claim", fail)
            with pytest.raises(ConnectionError):
                await parts.reclaimer.claim(5)
        assert parts.reclaimer.due
        await parts.reclaimer.claim(5)
        assert not parts.reclaimer.due

    with_parts(redis_url, body)


def test_its_own_late_leases_are_renewed_not_run_again(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        job = probe.submit([1])
        await parts.lease_one()
        abandon(probe, parts)
        assert await parts.reclaimer.claim(5) == 0
        assert len(parts.taken) == 1
        assert probe.job(job)["attempts"] == "1"
        (entry,) = probe.redis.xpending_range(probe.keys.lanes[Lane.INTERACTIVE], GROUP, "-", "+", 10)
        assert entry["time_since_delivered"] < 1000

    with_parts(redis_url, body)


def test_entries_that_were_deleted_leave_the_pending_list(redis_url: str, probe: QueueProbe) -> None:
    async def body(dead: Parts) -> None:
        probe.submit([1])
        leased = await dead.lease_one()
        abandon(probe, dead)
        probe.redis.xdel(probe.keys.lanes[Lane.INTERACTIVE], leased.lease.entry)
        assert await dead.other().reclaimer.claim(5) == 0
        assert probe.redis.xpending(probe.keys.lanes[Lane.INTERACTIVE], GROUP)["pending"] == 0

    with_parts(redis_url, body)


def upkeep(parts: Parts, publisher: Publisher) -> Upkeep:
    return Upkeep(parts.client, parts.probe.keys, publisher, parts.name, "letters")


def test_dead_consumers_go_unless_they_hold_something(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        lane = probe.keys.lanes[Lane.INTERACTIVE]
        probe.submit([1])
        await parts.other("holds").lease_one()
        for name in ("gone", "alive", parts.name):
            probe.redis.xgroup_createconsumer(lane, GROUP, name)
        probe.redis.set(probe.keys.worker("alive"), b"x", ex=60)
        assert await upkeep(parts, parts.publisher).remove_dead_consumers() == 1
        left = {consumer["name"] for consumer in probe.redis.xinfo_consumers(lane, GROUP)}
        assert left == {b"holds", b"alive", parts.name.encode()}

    with_parts(redis_url, body)


def test_a_consumer_that_holds_something_stays(redis_url: str, probe: QueueProbe) -> None:
    """Should it get an entry between the look and the removal."""

    async def body(parts: Parts) -> None:
        lane = probe.keys.lanes[Lane.INTERACTIVE]
        probe.submit([1])
        await parts.lease_one()
        assert await run(parts.client, Call(LEAVE, (lane,), (GROUP, parts.name, "", 0))) == 0
        assert probe.redis.xpending(lane, GROUP)["pending"] == 1

    with_parts(redis_url, body)


def test_expires_queued_jobs_and_only_those(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        running = probe.submit([1], deadline=probe.now() + 0.05)
        await parts.lease_one()
        late = probe.submit([1], deadline=probe.now() + 0.05, stream=True)
        later = probe.submit([1], deadline=probe.now() + 100)
        odd = probe.submit_bytes(b"\x01junk", deadline=probe.now() + 0.05)
        await asyncio.sleep(0.1)
        writer = asyncio.create_task(parts.publisher.run())
        await upkeep(parts, parts.publisher).step()
        parts.publisher.stop()
        await writer
        states = {job: probe.state(job) for job in (running, late, later, odd)}
        assert states == {running: "in_progress", late: "expired", later: "queued", odd: "expired"}
        result = probe.result(late)
        assert result is not None
        assert [e.result for e in probe.events(late)] == [result]

    with_parts(redis_url, body)


def test_odd_records_do_not_keep_others_from_moving(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        odd, late, delayed = probe.submit([1]), probe.submit([1], deadline=probe.now() - 1), probe.submit([1])
        fields = {"attempts": "1.5", "created_at": "x", "started_at": "y"}
        probe.redis.hset(probe.keys.job(odd), mapping=fields)
        probe.redis.set(probe.keys.job("a-string"), "x")
        probe.redis.zadd(probe.keys.deadlines, {odd: 1.0, "a-string": 1.0, b"\xff": 1.0})
        probe.redis.zadd(probe.keys.delayed, {"a-string": 1.0, delayed: 2.0})
        writer = asyncio.create_task(parts.publisher.run())
        await upkeep(parts, parts.publisher).step()
        parts.publisher.stop()
        await writer
        assert (probe.state(odd), probe.state(late)) == ("expired", "expired")
        assert probe.redis.zcard(probe.keys.deadlines) == probe.redis.zcard(probe.keys.delayed) == 0
        assert probe.redis.xlen(probe.keys.lanes[Lane.INTERACTIVE]) == 4

    with_parts(redis_url, body)
