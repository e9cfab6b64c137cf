from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
import redis

from millrace_schemas import GROUP, Lane, ModelInfo, WorkerInfo, decode
from millrace_worker.stream import heartbeat as heartbeat_module
from millrace_worker.stream.consumer import Entries
from millrace_worker.stream.heartbeat import Heartbeat, Report, Watchdog
from millrace_worker.stream.scripts import Call, run_sync
from queue_probe import QueueProbe
from stream_parts import Parts, with_parts

MODEL = ModelInfo(name="letters", max_model_len=10, vocab_size=10)


def info() -> WorkerInfo:
    return WorkerInfo(name="w1", model="letters", host="h", pid=1, device="d", started_at=0, beat_at=time.time())


def idle(probe: QueueProbe) -> int:
    (entry,) = probe.redis.xpending_range(probe.keys.lanes[Lane.INTERACTIVE], GROUP, "-", "+", 10)
    return entry["time_since_delivered"]


def heartbeat(url: str, parts: Parts, watchdog: Watchdog, reports: list[Report]) -> Heartbeat:
    return Heartbeat(
        url, parts.probe.keys, parts.name, parts.leases, watchdog, lease=0.6, model_ttl=60.0, model=MODEL, info=info,
        report=reports.append,
    )  # fmt: skip


async def first_report(url: str, parts: Parts) -> Report:
    """What a heartbeat says first; it is over then."""
    reports: list[Report] = []
    beat = heartbeat(url, parts, Watchdog(60.0, 60.0), reports)
    beat.start()
    while not reports:
        await asyncio.sleep(0.01)
    await asyncio.to_thread(beat.stop)
    return reports[0]


@pytest.mark.parametrize("stuck", ["", "loop", "engine"])
def test_beats_unless_something_is_stuck(redis_url: str, probe: QueueProbe, stuck: str) -> None:
    async def body(parts: Parts) -> None:
        probe.submit([1])
        await parts.lease_one()
        watchdog = Watchdog(loop_limit=-1.0 if stuck == "loop" else 60.0, engine_limit=1.0)
        watchdog.engine_spoke(time.monotonic() - 5 if stuck == "engine" else None)
        beat = heartbeat(redis_url, parts, watchdog, [])
        beat.start()
        await asyncio.sleep(1.0)
        held = idle(probe)
        alive = probe.redis.exists(probe.keys.worker("w1"))
        await asyncio.to_thread(beat.stop)
        if stuck:
            assert held > 900
            assert not alive
        else:
            assert held < 600
            assert alive
            assert decode(probe.redis.get(probe.keys.model), ModelInfo) == MODEL
        assert not probe.redis.exists(probe.keys.worker("w1"))

    with_parts(redis_url, body)


def test_reports_losses_and_cancellations(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        lost, cancelled, fine = (probe.submit([1]) for _ in range(3))
        await parts.consumer.next(3, wait=False)
        leases = {job.lease.job_id: job.lease for job in parts.taken}
        await parts.other().consumer.lease(Entries(Lane.INTERACTIVE, (leases[lost].entry,)))
        probe.redis.hset(probe.keys.job(cancelled), "cancel_requested", 1)
        reports: list[Report] = []
        beat = heartbeat(redis_url, parts, Watchdog(60.0, 60.0), reports)
        beat.start()
        assert await asyncio.to_thread(beat.wait_registered, 20)
        assert probe.redis.exists(probe.keys.model)
        while not reports:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(beat.stop)
        assert reports[0].lost == [leases[lost]]
        assert reports[0].cancelled == [cancelled]
        assert abs(reports[0].clock_offset) < 1
        assert fine in leases

    with_parts(redis_url, body)


def test_redis_clock_is_read_in_the_middle_of_a_slow_replys_way(
    redis_url: str, probe: QueueProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(client: redis.Redis, call: Call) -> Any:
        time.sleep(0.5)
        reply = run_sync(client, call)
        time.sleep(0.5)
        return reply

    async def body(parts: Parts) -> None:
        probe.submit([1])
        await parts.lease_one()
        monkeypatch.setattr(heartbeat_module, "run_sync", slow)
        report = await first_report(redis_url, parts)
        # One machine has one clock; by the reply's arrival it would be half a second.
        assert abs(report.clock_offset) < 0.3

    with_parts(redis_url, body)


def test_many_leases_are_all_renewed(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        for _ in range(1200):
            probe.submit([1])
        while await parts.consumer.next(400, wait=False):
            pass
        await asyncio.sleep(0.5)
        await first_report(redis_url, parts)
        found = probe.redis.xpending_range(probe.keys.lanes[Lane.INTERACTIVE], GROUP, "-", "+", 2000)
        assert len(found) == 1200
        assert max(entry["time_since_delivered"] for entry in found) < 400
        assert {entry["times_delivered"] for entry in found} == {1}

    with_parts(redis_url, body)
