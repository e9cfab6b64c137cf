"""The Lua scripts make the moves of schemas.states.TRANSITIONS, all of them and no others."""

from __future__ import annotations

import msgspec
import pytest

from millrace_schemas import TERMINAL, TRANSITIONS, ErrorCode, ErrorInfo, JobEvent, JobState, Lane
from millrace_worker.stream.closing import DeadLetter, Ending, GiveBack
from millrace_worker.stream.consumer import Entries
from millrace_worker.stream.scripts import PROMOTE, Call, run
from queue_probe import QueueProbe
from stream_parts import Parts, ending_of, with_parts

ENDS = {
    JobEvent.COMPLETE: JobState.COMPLETED,
    JobEvent.FAIL: JobState.FAILED,
    JobEvent.CANCEL: JobState.CANCELLED,
    JobEvent.EXPIRE: JobState.EXPIRED,
}


async def make_move(parts: Parts, state: JobState, event: JobEvent, mode: str) -> tuple[str, dict[str, str]]:
    """A job in `state` after the script of `event` was run on it, and its record before that."""
    probe = parts.probe
    job = probe.submit([1, 2])
    leased = await parts.lease_one()
    if state is JobState.QUEUED:
        assert await run(parts.client, GiveBack(leased.lease, "retry").call(probe.keys, parts.name, 60))
    elif state in ENDS.values():
        assert await run(parts.client, ending_of(leased, state).call(probe.keys, parts.name, 60))
    probe.redis.hset(probe.keys.job(job), mapping={"tenant": "acme", "webhook": "https://example.com"})
    probe.redis.zadd(probe.keys.unfinished("acme"), {job: 1})
    before = probe.job(job)
    if event is JobEvent.LEASE:
        entry = probe.redis.xadd(probe.keys.lanes[Lane.INTERACTIVE], {"job": job}).decode()
        await parts.consumer.lease(Entries(Lane.INTERACTIVE, (entry,)))
    elif event is JobEvent.REQUEUE:
        back = GiveBack(leased.lease, mode)  # type: ignore[arg-type]
        await run(parts.client, back.call(probe.keys, parts.name, 60))
    else:
        ending = ending_of(leased, ENDS[event])
        ending.owned = state is not JobState.QUEUED
        await run(parts.client, ending.call(probe.keys, parts.name, 60))
    return job, before


@pytest.mark.parametrize("event", JobEvent)
@pytest.mark.parametrize("state", JobState)
def test_every_move(redis_url: str, probe: QueueProbe, state: JobState, event: JobEvent) -> None:
    async def body(parts: Parts) -> None:
        for mode in ("retry", "handover") if event is JobEvent.REQUEUE else ("",):
            job, before = await make_move(parts, state, event, mode)
            expected = TRANSITIONS[state].get(event)
            after = probe.job(job)
            if expected is None:
                assert after == before
            else:
                assert after["state"] == expected
            ended = expected in TERMINAL
            assert (probe.redis.zscore(probe.keys.webhooks, job) is not None) == ended
            assert (probe.redis.zscore(probe.keys.unfinished("acme"), job) is None) == ended

    with_parts(redis_url, body)


def test_a_job_with_a_webhook_waits_until_it_is_told(redis_url: str, probe: QueueProbe) -> None:
    """Its time to live is kept, to begin then; and whoever tells is woken."""

    async def body(parts: Parts) -> None:
        for webhook in (True, False):
            job = probe.submit([1, 2])
            leased = await parts.lease_one()
            if webhook:
                probe.redis.hset(probe.keys.job(job), "webhook", "https://example.com")
            with probe.redis.pubsub() as listening:
                listening.subscribe(probe.keys.webhooks)
                assert listening.get_message(timeout=5) is not None
                assert await run(parts.client, ending_of(leased, JobState.COMPLETED).call(probe.keys, parts.name, 60))
                message = listening.get_message(timeout=0.2)
            assert (message is not None and message["data"] == job.encode()) is webhook
            assert probe.job(job).get("ttl") == ("60" if webhook else None)
            for key in (probe.keys.job(job), probe.keys.result(job)):
                assert (probe.redis.ttl(key) > 600_000) is webhook
                assert probe.redis.ttl(key) > 0

    with_parts(redis_url, body)


def test_promotion_leaves_the_state(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        job = probe.submit([1, 2])
        leased = await parts.lease_one()
        assert await run(parts.client, GiveBack(leased.lease, "retry", delay=0.0).call(probe.keys, parts.name, 60))
        assert probe.redis.xlen(probe.keys.lanes[Lane.INTERACTIVE]) == 0
        keys = probe.keys
        reply = await run(parts.client, Call(PROMOTE, (keys.delayed, keys.deadlines), (keys.prefix, 10)))
        assert reply[1] == b"1"
        assert probe.state(job) == "queued"
        again = await parts.lease_one()
        assert again.lease.job_id == job
        assert again.lease.attempt == 2

    with_parts(redis_url, body)


def test_promotion_forgets_what_is_not_queued(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        keys, lane = probe.keys, probe.keys.lanes[Lane.INTERACTIVE]
        ended = probe.submit([1, 2])
        leased = await parts.lease_one()
        assert await run(parts.client, ending_of(leased).call(keys, parts.name, 60))
        probe.redis.zadd(keys.delayed, {ended: 1.0, "letters-missing": 2.0})
        reply = await run(parts.client, Call(PROMOTE, (keys.delayed, keys.deadlines), (keys.prefix, 10)))
        assert reply[1] == b"0"
        assert probe.redis.zcard(keys.delayed) == probe.redis.xlen(lane) == 0

    with_parts(redis_url, body)


def test_an_unowned_end_needs_a_queued_job(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        probe.submit([1, 2])
        leased = await parts.lease_one()
        ending = Ending(leased.lease, ending_of(leased, JobState.EXPIRED).result, owned=False)
        assert await run(parts.client, ending.call(probe.keys, "", 60)) == 0
        assert probe.state(leased.lease.job_id) == "in_progress"

    with_parts(redis_url, body)


def test_an_end_that_nobody_wanted_leaves_a_notice(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        keys = probe.keys
        for state in (JobState.COMPLETED, JobState.CANCELLED, JobState.FAILED):
            probe.submit([1, 2])
            leased = await parts.lease_one()
            ending = ending_of(leased, state)
            error = None if state is JobState.COMPLETED else ErrorInfo(ErrorCode.INTERNAL, "r" * 600)
            ending.result = msgspec.structs.replace(ending.result, error=error)
            if state is JobState.FAILED:
                ending.dead = DeadLetter(ErrorCode.UNDECODABLE, "broken", b"data")
            call = ending.call(keys, parts.name, 60)
            assert await run(parts.client, call) == 1
        # The last reply was lost, and the call comes again.
        assert await run(parts.client, call) == 2
        ((_, fields),) = probe.redis.xrange(keys.failures)
        job = leased.lease.job_id.encode()
        expected = {
            b"job": job,
            b"lane": b"interactive",
            b"code": b"internal",
            b"attempts": b"1",
            b"reason": b"r" * 500,
        }
        assert fields == expected
        assert 0 < probe.redis.ttl(keys.failures) <= 60
        ((_, dead),) = probe.redis.xrange(keys.dead)
        assert (dead[b"code"], dead[b"data"]) == (b"undecodable", b"data")

    with_parts(redis_url, body)
