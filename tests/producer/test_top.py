"""`millrace top`: printed once, as lines of JSON, and live in a terminal of 80 columns."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import redis

from batch_maker import new_batch, put
from fake_worker import FakeWorker, register
from millrace import AsyncClient, Client, WorkerInfo
from millrace.bulk.glance import Paces
from millrace.embedded import EmbeddedRedis, free_port
from millrace.overview import Overview, Throughput, read_overview
from millrace.overview_rows import age, closed_of, printable, sharing_of, tiers_of
from millrace_schemas import QueueKeys, encode, queue_of
from millrace_schemas.batch import BatchError, BatchStatus
from terminal import environment, in_terminal, read_until

_LONG = "Qwen/Qwen3-0.6B-Instruct-2507-with-a-name-that-goes-on"
_HIDE, _SHOW = b"\x1b[?1049h", b"\x1b[?1049l"


def top(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "millrace", "top", "--redis-url", url, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment())


def info(name: str = "w-1", model: str = "demo", **numbers: Any) -> WorkerInfo:
    given = {"host": "h", "pid": 1, "device": "cpu", "started_at": 1.0, "beat_at": 100.0, **numbers}
    return WorkerInfo(name=name, model=model, **given)


def beat(raw: redis.Redis, worker: WorkerInfo) -> None:
    keys = QueueKeys(queue_of(worker.model))
    raw.set(keys.worker(worker.name), encode(worker))
    raw.zadd(keys.workers, {worker.name: 1.0})


def test_once_fits_80_columns(redis_url: str, raw: redis.Redis) -> None:
    register(redis_url, _LONG)
    numbers: dict[str, Any] = {
        "running": 256,
        "waiting": 1024,
        "kv_usage": 0.97,
        "finished": 1234567,
        "output_tokens": 1234567890,
    }
    numbers |= {"prompt_tokens": 1000, "cached_tokens": 625, "steps": 400, "shared_steps": 339}
    numbers["cached_by_tier"] = {"gpu": 525, "cpu": 100}
    beat(raw, info("gpu-host-0.example-12345-abcdef", _LONG, device="NVIDIA H200", beat_at=time.time(), **numbers))
    reason = "killed \x1b[31m3 [red]workers[/red] " + "and on " * 20
    raw.xadd(QueueKeys(queue_of(_LONG)).dead, {"code": "too_many_attempts", "reason": reason, "attempts": 3})
    with Client(redis_url, _LONG) as client:
        client.submit_many([{"prompt": "a", "lane": "batch"}] * 1200)
    done = top(redis_url, "--once")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "1 worker" in lines
    assert "62% of prompt tokens came from the prefix cache, 85% of steps were grouped" in lines
    assert "by tier: gpu 52.5%, cpu 10.0%" in lines
    for cell in ("1,200", "256", "1,024", "97%", "62%", "1,234,567", "1,234,567,890", "too_many_attempts", "[red]"):
        assert cell in done.stdout, cell
    assert "…" not in done.stdout
    assert "\x1b" not in done.stdout
    # A name goes on in further lines, whole.
    column = "".join(line.split(" ", 1)[0] for line in lines[lines.index("1 worker") + 2 :])
    assert "gpu-host-0.example-12345-abcdef" in column


def test_bulk_files_fit_80_columns(redis_url: str, raw: redis.Redis) -> None:
    error = BatchError("invalid_json_line", "This line is \x1b[2J[red]no JSON.", line=2)
    put(raw, new_batch("batch_1", age=3006, status=BatchStatus.FAILED, errors=(error,), input="file:///in/b.csv"))
    batch = new_batch("batch_2", age=1000, status=BatchStatus.IN_PROGRESS, total=5_000_000, input=f"s3://in/{_LONG}")
    put(raw, batch, completed=1_234_567, failed=12, problem="the disk is full")
    put(raw, new_batch("batch_3"), checked="0.345")
    done = top(redis_url, "--once")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    for cell in ("24%", "1,234,579/5,000,000", "1,23", "34%", "50.1 min ago", "validating"):
        assert cell in done.stdout, cell
    text = done.stdout.replace("\n", "")
    assert f"{_LONG.rpartition('/')[2]}: waiting: the disk is full" in text
    assert "b.csv: line 2: This line is \ufffd[2J[red]no JSON. [invalid_json_line]" in text


def test_json_once(redis_url: str) -> None:
    with FakeWorker(redis_url), Client(redis_url) as client:
        client.submit("hello").result(timeout=20)
        limit = time.monotonic() + 20
        while not client.queue_stats().workers:
            assert time.monotonic() < limit
        done = top(redis_url, "--once", "--json")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    found = json.loads(done.stdout)
    assert [w["name"] for w in found["queues"][0]["workers"]] == ["fake"]
    assert (found["models"][0]["name"], found["failures"]) == ("demo", [])


def test_json_goes_on_until_a_signal(redis_url: str, client: Client) -> None:
    command = [sys.executable, "-m", "millrace", "top", "--redis-url", redis_url, "--json", "--interval", "0.2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        waiting = []
        for line in process.stdout:
            waiting.append(json.loads(line)["queues"][0]["lanes"]["interactive"]["waiting"])
            if len(waiting) == 1:
                client.submit("a")
            if waiting[-1]:
                break
        assert waiting[0] == 0
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_live_until_a_signal(redis_url: str, client: Client, raw: redis.Redis, number: int) -> None:
    now = time.time()
    beat(raw, info("w-1", output_tokens=1000, beat_at=now))
    with in_terminal("top", "--redis-url", redis_url, "--interval", "0.2") as (process, terminal):
        assert _HIDE in read_until(terminal, b"w-1")
        beat(raw, info("w-1", output_tokens=5321, beat_at=now + 10))
        read_until(terminal, b"432 output tokens/s")
        process.send_signal(number)
        seen = read_until(terminal, _SHOW)
        assert process.wait(20) == (0 if number == signal.SIGINT else 128 + number)
    assert b"Traceback" not in seen


def test_live_through_an_outage(client: Client) -> None:
    with EmbeddedRedis() as server:
        register(server.url)
        with in_terminal("top", "--redis-url", server.url, "--interval", "0.2") as (process, terminal):
            read_until(terminal, b"demo")
            server.stop()
            read_until(terminal, b"not up to date")
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            read_until(terminal, _SHOW)
            assert process.wait(20) == 0


def test_no_redis_and_no_model(redis_url: str) -> None:
    assert "no model is registered" in top(redis_url).stdout
    done = top(f"redis://127.0.0.1:{free_port()}/0")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "Redis" in done.stderr


def test_throughput_is_that_between_heartbeats() -> None:
    known = Throughput()
    first = info(output_tokens=100, beat_at=100.0)
    known.update([first, info("w-2", "other", output_tokens=5)])
    assert known.of(first) is None
    second = info(output_tokens=300, beat_at=104.0)
    known.update([second])
    assert known.of(second) == 50.0
    # No new heartbeat: the rate stays.
    known.update([second])
    assert known.of(second) == 50.0
    # Started again under its name.
    known.update([info(output_tokens=10, beat_at=110.0)])
    assert known.of(second) is None
    known.update([])
    assert known.of(second) is None
    assert known.of(info("w-2", "other")) is None


def test_sharing_is_that_of_all_workers_together() -> None:
    assert sharing_of([]) == sharing_of([info()]) == ""
    old = info("w-1", prompt_tokens=100, cached_tokens=99)
    assert sharing_of([old]) == "99% of prompt tokens came from the prefix cache"
    new = info("w-2", prompt_tokens=300, cached_tokens=1, steps=8, shared_steps=2)
    assert sharing_of([old, new]) == "25% of prompt tokens came from the prefix cache, 25% of steps were grouped"


def test_hits_are_told_by_tier_where_there_are_several() -> None:
    first = info("w-1", prompt_tokens=600, cached_tokens=300, cached_by_tier={"gpu": 300})
    assert tiers_of([]) == tiers_of([first]) == ""
    other = info("w-2", prompt_tokens=400, cached_tokens=105, cached_by_tier={"gpu": 60, "disk": 5, "cpu": 40})
    assert tiers_of([first, other]) == "by tier: gpu 36.0%, cpu 4.0%, disk 0.5%"


def test_tiers_that_are_not_open_are_named(redis_url: str, raw: redis.Redis) -> None:
    assert closed_of([info("w-1")]) == ""
    register(redis_url, "m")
    beat(raw, info("w-1", "m", beat_at=time.time(), closed_tiers=["disk", "s3"]))
    beat(raw, info("w-2", "m", beat_at=time.time()))
    done = top(redis_url, "--once")
    assert "cache tiers that are not open: disk of w-1, s3 of w-1" in done.stdout


def test_an_overview_is_of_all_queues(redis_url: str, raw: redis.Redis) -> None:
    async def read() -> Overview:
        async with AsyncClient(redis_url) as client:
            return await read_overview(client, Paces())

    assert asyncio.run(read()) == Overview(models=[], queues=[], failures=[])
    for model in ("b", "a"):
        register(redis_url, model)
        for n in range(8):
            raw.xadd(QueueKeys(model).dead, {"code": "undecodable", "reason": f"{model}{n}"})
    found = asyncio.run(read())
    assert [m.name for m in found.models] == [q.model for q in found.queues] == ["a", "b"]
    # The newest ten, whatever the queue.
    assert [failed.reason for failed in found.failures] == [f"a{n}" for n in range(7, -1, -1)] + ["b7", "b6"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "-"), (-3.0, "0 s"), (59.0, "59 s"), (90.0, "1.5 min"), (5400.0, "1.5 h"), (129600.0, "1.5 d")],
)
def test_ages(seconds: float | None, words: str) -> None:
    assert age(seconds) == words


def test_what_steers_a_terminal_is_replaced() -> None:
    assert printable("a\x1b[2J\u202eb\x07\n c ü 漢") == "a\ufffd[2J\ufffdb\ufffd c ü 漢"
