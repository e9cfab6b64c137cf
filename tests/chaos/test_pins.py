"""Pins of whole workers: made by jobs, told to all engines, there before a worker serves, and never in a job's way."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from fake_engine import BAD, POISON, expected_tokens
from millrace_schemas import (
    HeldPin,
    JobState,
    Message,
    Pin,
    PinTerms,
    Request,
    Role,
    Sampling,
    WorkerCache,
    decode,
    encode,
)
from queue_probe import QueueProbe
from worker_process import WorkerProcess

PREFIX = list(range(100, 148))


def submit(probe: QueueProbe, ids: list[int], **fields: Any) -> str:
    return probe.submit(ids, max_tokens=2, **{"cache": "pin", **fields})


def held(probe: QueueProbe) -> dict[str, list[HeldPin]]:
    """What each live worker says that it holds."""
    notices = [probe.redis.get(probe.keys.cache(name)) for name in probe.workers()]
    return {n.worker: list(n.pins) for n in (decode(data, WorkerCache) for data in notices if data)}


def all_hold(probe: QueueProbe, workers: int, tier: str = "gpu") -> bool:
    found = held(probe)
    return len(found) == workers and all([pin.tier for pin in pins] == [tier] for pins in found.values())


def test_a_job_pins_for_all_workers(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    with WorkerProcess(redis_url, tmp_path), WorkerProcess(redis_url, tmp_path):
        job = submit(probe, PREFIX)
        assert probe.wait([job])[job].state is JobState.COMPLETED
        pin = probe.job(job)["pin"]
        probe.wait_for("both workers hold it", lambda: all_hold(probe, 2))
        (one,), (other,) = held(probe).values()
        assert one.id == other.id == pin
        assert (one.blocks, one.bytes) == (3, 4800)
        jobs = [probe.submit([*PREFIX, n], max_tokens=2) for n in range(20)]
        assert {result.usage.cached_tokens for result in probe.wait(jobs).values()} == {48}
        probe.wait_for("hits are told", lambda: sum(pins[0].hits for pins in held(probe).values()) >= 20)
    probe.assert_quiet()
    assert held(probe) == {}
    assert not probe.redis.keys(probe.keys.cache("*"))


def test_the_system_messages_part_is_pinned_with_the_tenants_salt(
    redis_url: str, probe: QueueProbe, tmp_path: Path
) -> None:
    messages = (Message(Role.SYSTEM, "s" * 40), Message(Role.USER, "hello"))
    given: dict[str, Any] = {"messages": messages, "sampling": Sampling(max_tokens=2), "cache": "pin"}
    with WorkerProcess(redis_url, tmp_path):
        jobs = {
            who: probe.submit_request(Request(model=probe.model, tenant=who[0], cache_salt=who[1], **given))
            for who in (("", ""), ("acme", ""), ("acme", "x"), ("other", ""))
        }
        probe.wait(jobs.values())
        pins = {who: probe.job(job)["pin"] for who, job in jobs.items()}
        assert len(set(pins.values())) == 4
        for who, pin in pins.items():
            terms = PinTerms.parse(probe.redis.hget(probe.keys.pin_terms, pin))
            assert (terms.tokens, terms.tenant) == (40, who[0])


def test_a_worker_serves_once_its_cache_is_warm(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    with WorkerProcess(redis_url, tmp_path):
        probe.wait([submit(probe, PREFIX)])
    job = probe.submit([*PREFIX, 1], max_tokens=4)
    with WorkerProcess(redis_url, tmp_path, engine=("--pin-delay", "1.5")) as worker:
        assert '"pinned prefixes"' in worker.log.split('"serving"')[0]
        result = probe.wait([job])[job]
        assert result.usage.cached_tokens == 48
        assert result.choices[0].token_ids == tuple(expected_tokens([*PREFIX, 1], 4))
        assert "heartbeat stops" not in worker.log


def test_the_wait_for_a_warm_cache_has_an_end(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    with WorkerProcess(redis_url, tmp_path):
        jobs = [submit(probe, PREFIX), submit(probe, [BAD, *PREFIX])]
        # The engine refuses the job with BAD in it; that is no reason not to keep its pin.
        probe.wait(jobs)
    pins = [probe.job(job)["pin"] for job in jobs]
    with WorkerProcess(redis_url, tmp_path, engine=("--pin-delay", "60"), pin_warm_timeout=0.5) as worker:
        assert f'"not_yet": ["{pins[0]}"]' in worker.log
        assert f'"problems": {{"{pins[1]}": "no_room"}}' in worker.log
        job = probe.submit([1, 2])
        assert probe.wait([job])[job].state is JobState.COMPLETED


def test_a_worker_that_warms_can_be_stopped(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    with WorkerProcess(redis_url, tmp_path):
        probe.wait([submit(probe, PREFIX)])
    worker = WorkerProcess(redis_url, tmp_path, engine=("--pin-delay", "60")).start(wait=False)
    with worker:
        probe.wait_for("it warms", lambda: "waiting for pinned prefixes" in worker.log)
        assert worker.stop() == 0


def test_an_engine_that_died_is_told_all_again(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    with WorkerProcess(redis_url, tmp_path, engine=("--step", "0.02")) as worker:
        probe.wait([submit(probe, PREFIX)])
        probe.wait_for("it is held", lambda: all_hold(probe, 1))
        job = probe.submit([*PREFIX, 1], max_tokens=60)
        probe.wait_for("it runs", lambda: probe.checkpoint(job) > 0)
        os.kill(worker.engine_pid(), signal.SIGKILL)
        result = probe.wait([job])[job]
        assert result.choices[0].token_ids == tuple(expected_tokens([*PREFIX, 1], 60))
        job = probe.submit([*PREFIX, 2], max_tokens=2)
        assert probe.wait([job])[job].usage.cached_tokens == 48
        probe.wait_for("it is held", lambda: all_hold(probe, 1))


def test_a_pin_that_kills_engines_is_left_out(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    """A start waits for no engine that a pin kills again and again."""
    with WorkerProcess(redis_url, tmp_path):
        jobs = [submit(probe, PREFIX), submit(probe, [*PREFIX, 5])]
        probe.wait(jobs)
    bad = _poison(probe, probe.job(jobs[1])["pin"])
    with WorkerProcess(redis_url, tmp_path) as worker:
        job = probe.submit([*PREFIX, 1], max_tokens=2)
        assert probe.wait([job])[job].usage.cached_tokens == 48, "the other pin is there"
        assert f'"problems": {{"{bad}": "engine_died"}}' in worker.log


def _poison(probe: QueueProbe, name: str) -> str:
    """Makes the registered pin one that ends the fake engine."""
    pin = decode(probe.redis.hget(probe.keys.pins, name), Pin)
    tokens = (*pin.token_ids[:-1], POISON)
    probe.redis.hset(probe.keys.pins, name, encode(Pin(id=name, token_ids=tokens)))
    return name


def test_what_is_not_pinned_runs_all_the_same(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    with WorkerProcess(redis_url, tmp_path, max_pinned_tokens=600) as worker:
        short = submit(probe, [1, 2, 3])
        assert probe.wait([short])[short].choices[0].token_ids == tuple(expected_tokens([1, 2, 3], 2))
        assert probe.job(short)["pin_problem"].startswith("it is shorter (3) than a block of 16 tokens")
        jobs = []
        for n in range(3):
            jobs.append(submit(probe, [n, *PREFIX]))
            probe.wait(jobs)
        assert [("pin" in probe.job(job), "pin_problem" in probe.job(job)) for job in jobs] == [
            (True, False), (True, False), (False, True),
        ]  # fmt: skip
        assert "the queue has pinned, of at most 600" in probe.job(jobs[2])["pin_problem"]
        assert worker.log.count("the prefix of a job is not pinned") == 2
        # Room for it by an eviction, which workers hear of by the next beat at the latest.
        probe.redis.zadd(probe.keys.pin_expiry, {probe.job(jobs[0])["pin"]: 1.0})
        again = submit(probe, [2, *PREFIX])
        probe.wait([again])
        assert "pin" in probe.job(again)
        probe.wait_for("one is let go", lambda: len(next(iter(held(probe).values()), [])) == 2)


def test_hits_prolong_a_pin(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    with WorkerProcess(redis_url, tmp_path):
        job = submit(probe, PREFIX, cache_ttl=600)
        probe.wait([job])
        pin = probe.job(job)["pin"]
        probe.wait_for("it is held", lambda: all_hold(probe, 1))
        probe.redis.zadd(probe.keys.pin_expiry, {pin: probe.now() + 60})
        time.sleep(0.3)
        assert probe.redis.zscore(probe.keys.pin_expiry, pin) < probe.now() + 70, "nobody used it"
        probe.wait([probe.submit([*PREFIX, 1], max_tokens=2)])
        probe.wait_for("it is prolonged", lambda: probe.redis.zscore(probe.keys.pin_expiry, pin) > probe.now() + 590)


def test_jobs_run_while_the_registry_cannot_be_used(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    """Its keys hold something else, say: reads and writes of it fail, and nothing else does."""
    for key in (probe.keys.pins, probe.keys.pin_expiry, probe.keys.pin_terms):
        probe.redis.set(key, "x", ex=60)
    with pytest.raises(redis.ResponseError):
        probe.redis.hget(probe.keys.pins, "x")
    with WorkerProcess(redis_url, tmp_path) as worker:
        job = submit(probe, PREFIX)
        assert probe.wait([job])[job].state is JobState.COMPLETED
        assert "the prefix of a job is not pinned" in worker.log
