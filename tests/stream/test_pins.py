"""The registry of pins on a real Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from millrace_schemas import Pin, PinTerms, WorkerCache, decode, encode, pin_id
from millrace_worker.stream import pins as pins_module
from millrace_worker.stream.connection import connect
from millrace_worker.stream.pin_writer import PinWriter
from millrace_worker.stream.pins import PinLimits, PinRegistry, PinWish
from queue_probe import QueueProbe

Body = Callable[[PinRegistry], Awaitable[None]]


def with_registry(url: str, probe: QueueProbe, body: Body, queue: int = 100_000) -> None:
    async def run() -> None:
        client = connect(url)
        try:
            await body(PinRegistry(client, probe.keys, "w1", PinLimits(queue, 1000)))
        finally:
            await client.aclose()

    asyncio.run(run())


async def put(registry: PinRegistry, pin: Pin, ttl: float, tenant: str, job_id: str) -> str:
    (problem,) = await registry.put([PinWish(job_id, pin, ttl, tenant)])
    return problem


def pin_of(*ids: int, salt: str = "", length: int = 32) -> Pin:
    tokens = (ids * length)[:length]
    return Pin(id=pin_id(salt, tokens), token_ids=tokens, cache_salt=salt)


def test_an_id_is_of_salt_and_tokens() -> None:
    assert pin_id("a", (1, 2)) == pin_id("a", [1, 2])
    different = [pin_id("a", (1, 2)), pin_id("", (1, 2)), pin_id("a", (2, 1)), pin_id("a", (1,)), pin_id("aa", (1, 2))]
    assert len(set(different)) == len(different)
    assert all(len(name) == 36 and name.startswith("pin_") for name in different)


def test_a_pin_is_put_once_and_read_by_those_who_lack_it(redis_url: str, probe: QueueProbe) -> None:
    job = probe.submit([1])
    pin = pin_of(1, 2)

    async def body(registry: PinRegistry) -> None:
        assert (await registry.read(())).ids == frozenset()
        with probe.redis.pubsub(ignore_subscribe_messages=True) as listener:
            listener.subscribe(probe.keys.control)
            listener.get_message(timeout=1)
            for _ in range(2):
                assert await put(registry, pin, 60, "", job) == ""
            assert listener.get_message(timeout=1)["data"] == b"pins"
            assert listener.get_message(timeout=0.1) is None, "told once"
        found = await registry.read(())
        assert (found.ids, found.new) == ({pin.id}, [pin])
        found = await registry.read([pin.id])
        assert (found.ids, found.new) == ({pin.id}, [])
        assert probe.job(job)["pin"] == pin.id

    with_registry(redis_url, probe, body)
    terms = PinTerms.parse(probe.redis.hget(probe.keys.pin_terms, pin.id))
    assert terms[:2] == (32, 60.0)
    assert abs(terms.created_at - probe.now()) < 10
    for key in (probe.keys.pins, probe.keys.pin_expiry, probe.keys.pin_terms):
        assert 55_000 < probe.redis.pttl(key) < 62_000


def test_the_longest_time_to_live_stays(redis_url: str, probe: QueueProbe) -> None:
    pin = pin_of(1)

    async def body(registry: PinRegistry) -> None:
        created = set()
        for ttl, lives in ((600, 600), (60, 600), (3600, 3600)):
            await put(registry, pin, ttl, "", "nobody")
            terms = PinTerms.parse(probe.redis.hget(probe.keys.pin_terms, pin.id))
            assert terms.ttl == lives
            assert abs(probe.redis.zscore(probe.keys.pin_expiry, pin.id) - probe.now() - lives) < 5
            created.add(terms.created_at)
        assert len(created) == 1
        assert not probe.redis.exists(probe.keys.job("nobody")), "no record of a job that is gone"

    with_registry(redis_url, probe, body)


def test_a_refresh_prolongs_what_is_there(redis_url: str, probe: QueueProbe) -> None:
    used, idle = pin_of(1), pin_of(2)

    async def body(registry: PinRegistry) -> None:
        for pin in (used, idle):
            await put(registry, pin, 600, "", "nobody")
            probe.redis.zadd(probe.keys.pin_expiry, {pin.id: probe.now() + 100})
        await registry.refresh([used.id, "pin_gone"])
        ends = {name.decode(): at - probe.now() for name, at in probe.redis.zscan_iter(probe.keys.pin_expiry)}
        assert set(ends) == {used.id, idle.id}
        assert ends[used.id] == pytest.approx(600, abs=5)
        assert ends[idle.id] == pytest.approx(100, abs=5)
        assert 590 < probe.redis.ttl(probe.keys.pins) <= 602

    with_registry(redis_url, probe, body)


def test_what_is_over_is_removed_and_told(redis_url: str, probe: QueueProbe) -> None:
    old, new = pin_of(1), pin_of(2)

    async def body(registry: PinRegistry) -> None:
        for pin in (old, new):
            await put(registry, pin, 600, "", "nobody")
        probe.redis.zadd(probe.keys.pin_expiry, {old.id: probe.now() - 0.1})
        with probe.redis.pubsub(ignore_subscribe_messages=True) as listener:
            listener.subscribe(probe.keys.control)
            listener.get_message(timeout=1)
            assert (await registry.read([old.id, new.id])).ids == {new.id}
            assert listener.get_message(timeout=1)["data"] == b"pins"
        await registry.refresh([old.id])
        for key in (probe.keys.pins, probe.keys.pin_terms):
            assert [name.decode() for name in probe.redis.hkeys(key)] == [new.id]

    with_registry(redis_url, probe, body)


def test_limits_of_queue_and_tenant(redis_url: str, probe: QueueProbe) -> None:
    """Short pins count as 256 tokens; what does not fit changes nothing, and what is there may always be prolonged."""

    async def body(registry: PinRegistry) -> None:
        mine = [pin_of(n, salt="acme:", length=300) for n in range(4)]
        assert [bool(await put(registry, pin, 60, "acme", "nobody")) for pin in mine] == [False, False, False, True]
        assert await put(registry, mine[0], 60, "acme", "nobody") == ""
        problem = await put(registry, mine[3], 60, "acme", "nobody")
        assert "beside the 900 that tenant acme has pinned, of at most 1,000" in problem
        assert "--max-pinned-tokens-per-tenant" in problem
        assert await put(registry, pin_of(5, salt="b:"), 60, "b", "nobody") == ""
        problem = await put(registry, pin_of(6, length=600), 60, "", "nobody")
        assert "beside the 1,156 that the queue has pinned, of at most 1,500" in problem
        assert await put(registry, pin_of(6, length=200), 60, "", "nobody") == ""
        assert len((await registry.read(())).ids) == 5
        # What is over makes room.
        probe.redis.zadd(probe.keys.pin_expiry, {mine[0].id: 1.0})
        assert await put(registry, mine[3], 60, "acme", "nobody") == ""

    with_registry(redis_url, probe, body, queue=1500)


def test_many_pins_come_in_several_replies(redis_url: str, probe: QueueProbe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins_module, "_MOST_BYTES", 1000)
    pins = [pin_of(n, length=300) for n in range(20)]

    async def body(registry: PinRegistry) -> None:
        for pin in pins:
            assert await put(registry, pin, 60, "", "nobody") == ""
        # One that nobody can read keeps nobody from the others.
        probe.redis.hset(probe.keys.pins, pins[3].id, b"\x07" + encode(pins[3])[1:])
        found = await registry.read(())
        assert found.ids == {pin.id for pin in pins}
        assert {pin.id for pin in found.new} == found.ids - {pins[3].id}

    with_registry(redis_url, probe, body)


def test_many_wishes_are_put_together(redis_url: str, probe: QueueProbe) -> None:
    """Each job is told what became of its own."""
    pins = [pin_of(n, length=300) for n in range(5)]
    jobs = [probe.submit([1]) for _ in range(7)]
    probe.redis.lpush(probe.keys.job("odd"), "no hash")

    async def body(registry: PinRegistry) -> None:
        wishes = [PinWish(job, pins[n % 5], 60) for n, job in enumerate(jobs[:6])]
        wishes += [PinWish(jobs[6], pins[0], 60, problem="too short"), PinWish("odd", pins[1], 60)]
        problems = await registry.put([*wishes, PinWish("nobody", pins[2], 60)])
        starts = [problem.split(":")[0].split(" ")[-1] for problem in problems]
        assert starts[:3] + starts[5:] == ["", "", "", "", "short", "it", ""]
        assert "do not fit" in problems[3]
        assert len((await registry.read(())).ids) == 3

    with_registry(redis_url, probe, body, queue=900)
    notes = [probe.job(job) for job in jobs]
    assert [note.get("pin") for note in notes] == [pins[n].id for n in range(3)] + [None, None, pins[0].id, None]
    assert notes[6]["pin_problem"] == "too short"
    assert "do not fit" in notes[3]["pin_problem"]
    assert not probe.redis.exists(probe.keys.job("nobody"))


def test_a_job_that_is_pinned_after_all_has_no_problem(redis_url: str, probe: QueueProbe) -> None:
    job = probe.submit([1])

    async def body(registry: PinRegistry) -> None:
        await registry.put([PinWish(job, pin_of(1), 60, problem="too short")])
        assert probe.job(job)["pin_problem"] == "too short"
        await put(registry, pin_of(1), 60, "", job)
        assert "pin_problem" not in probe.job(job)

    with_registry(redis_url, probe, body)


def test_the_writer_goes_on_while_redis_is_away(redis_url: str, probe: QueueProbe) -> None:
    async def body(registry: PinRegistry) -> None:
        writer = PinWriter(registry)
        done = [writer.put(PinWish("nobody", pin_of(n), 60)) for n in range(300)]
        await asyncio.gather(*done)
        assert len((await registry.read(())).ids) == 300
        away = connect("redis://127.0.0.1:1/0")
        lost = PinWriter(PinRegistry(away, probe.keys, "w1", PinLimits(1, 1)))
        await asyncio.gather(lost.put(PinWish("a", pin_of(1), 60)), lost.put(PinWish("b", pin_of(1), 60)))
        await away.aclose()
        await writer.put(PinWish("nobody", pin_of(301), 60))
        assert len((await registry.read(())).ids) == 301

    with_registry(redis_url, probe, body)


def test_a_notice_of_the_cache_has_a_time_to_live(redis_url: str, probe: QueueProbe) -> None:
    async def body(registry: PinRegistry) -> None:
        notice = WorkerCache(worker="w1", at=time.time())
        await registry.tell(notice)
        assert decode(probe.redis.get(probe.keys.cache("w1")), WorkerCache) == notice
        assert 0 < probe.redis.ttl(probe.keys.cache("w1")) <= 30
        await registry.leave()
        assert not probe.redis.exists(probe.keys.cache("w1"))

    with_registry(redis_url, probe, body)
