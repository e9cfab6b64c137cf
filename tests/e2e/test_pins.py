"""Pinned prefixes with nothing faked: gateway, keys, Redis, real workers with the demo model and a disk."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis

from gateway_server import GatewayServer
from key_maker import KeyMaker
from millrace import Client, Sampling
from millrace.gateway import GatewaySettings
from millrace_schemas import QueueKeys, WorkerCache, decode

SYSTEM = "Change the words by the rule. " * 12
OTHER = "Sort the words, and say nothing else. " * 12
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start_worker(redis_url: str, tmp_path: Path) -> Iterator[Start]:
    """Starts `python -m millrace_worker` on the demo model and returns once it serves; `name` is its log's."""
    workers: list[subprocess.Popen[bytes]] = []

    def start(name: str, *flags: str) -> subprocess.Popen[bytes]:
        flags = ("--redis-url", redis_url, "--device", "cpu", "--log-format", "json", *flags)
        log = tmp_path / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen([sys.executable, "-m", "millrace_worker", *flags], stdout=file, stderr=file)
        workers.append(process)
        wait_for(lambda: '"serving"' in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        return process

    yield start
    for worker in workers:
        worker.kill()
        worker.wait()


def wait_for(what: Callable[[], object], seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit, "gave up waiting"
        time.sleep(0.05)


def tiers(raw: redis.Redis) -> list[dict[str, str]]:
    """By pin, where each live worker holds it."""
    keys = QueueKeys("demo")
    alive = [name.decode() for name in raw.zrange(keys.workers, 0, -1) if raw.exists(keys.worker(name.decode()))]
    notices = [raw.get(keys.cache(name)) for name in alive]
    return [{} if data is None else {pin.id: pin.tier for pin in decode(data, WorkerCache).pins} for data in notices]


def cached(client: Client, system: str, **fields: Any) -> int:
    sampling = Sampling(max_tokens=4, temperature=0)
    job = client.submit(system=system, prompt="Uppercase every word: quiet river", sampling=sampling, **fields)
    return job.result(timeout=60).usage.cached_tokens


def test_a_pin_survives_what_its_worker_does_not(redis_url: str, start_worker: Start, tmp_path: Path) -> None:
    disk = ("--disk-cache-dir", str(tmp_path / "disk"))
    with redis.Redis.from_url(redis_url, protocol=2) as raw, Client(redis_url, model="demo") as client:
        worker = start_worker("first", *disk)
        assert cached(client, SYSTEM, cache="pin") == 0
        wait_for(lambda: [list(found.values()) for found in tiers(raw)] == [["gpu"]])
        wait_for(lambda: sum(path.is_file() for path in (tmp_path / "disk").rglob("*")) >= 13)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        start_worker("second", *disk)
        first = cached(client, SYSTEM)
        assert first >= 176, "it was there before the worker was ready"
        assert cached(client, OTHER) < 32
        log = (tmp_path / "second.log").read_text()
        ready = next(json.loads(line) for line in log.splitlines() if '"pinned prefixes"' in line)
        disk_open = next(json.loads(line) for line in log.splitlines() if '"disk cache open"' in line)
        assert disk_open["blocks"] >= 12
        assert (ready["resident"], ready["not_yet"], ready["problems"]) == (1, [], {})


def test_a_pin_of_one_worker_is_on_the_others(redis_url: str, start_worker: Start) -> None:
    with redis.Redis.from_url(redis_url, protocol=2) as raw, Client(redis_url, model="demo") as client:
        start_worker("first")
        start_worker("second")
        cached(client, SYSTEM, cache="pin")
        wait_for(lambda: [list(found.values()) for found in tiers(raw)] == [["gpu"]] * 2)
        jobs = [
            client.submit(system=SYSTEM, prompt=f"Uppercase every word: {n}", sampling={"max_tokens": 4})
            for n in range(12)
        ]
        results = [job.result(timeout=60) for job in jobs]
        assert len({result.worker for result in results}) == 2
        assert min(result.usage.cached_tokens for result in results) >= 176


def test_a_tenant_pins_for_itself(redis_url: str, start_worker: Start) -> None:
    """Through the gateway: what it pins is found by its own jobs, and no other tenant's are told from it."""
    make = KeyMaker(redis_url)
    keys = {tenant: make(tenant=tenant) for tenant in ("acme", "other")}
    start_worker("first")
    with (
        GatewayServer(redis_url, GatewaySettings(require_keys=True)) as gateway,
        redis.Redis.from_url(redis_url, protocol=2) as raw,
        httpx2.Client(base_url=gateway.url, timeout=60) as http,
    ):

        def ask(tenant: str, **fields: Any) -> int:
            body = {
                "model": "demo",
                "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "quiet river"}],
                "max_tokens": 4,
                **fields,
            }
            answer = http.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {keys[tenant]}"})
            assert answer.is_success, answer.text
            return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

        assert ask("acme", cache="pin", cache_ttl=600) == 0
        wait_for(lambda: [list(found.values()) for found in tiers(raw)] == [["gpu"]])
        assert ask("acme") >= 176
        assert ask("other") == 0
        assert raw.hvals(QueueKeys("demo").pin_terms)[0].endswith(b" acme")
