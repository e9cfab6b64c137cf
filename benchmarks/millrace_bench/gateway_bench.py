"""`millrace bench gateway`: Redis, a worker that costs nothing, a gateway and its clients, each its own process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import redis

from millrace.embedded import EmbeddedRedis, free_port

from .figures_table import met
from .processes import start, wait_for

_JSON = dict[str, Any]
#: Seconds that a process has to start, and that closed connections have to be seen as such.
_PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """How much of each kind; `seconds` is the length of each timed part."""

    seconds: float = 10.0
    submitters: int = 64
    polls: int = 1000
    streams: int = 200
    requests: int = 200_000
    connections: int = 10_000


#: What each figure should be at most; the first two are over the client alone. `submits_per_s` is a least.
TARGETS: dict[str, float] = {
    "submit_over_client_ms": 3.0, "first_token_over_client_ms": 5.0, "submits_per_s": 2000, "polls_p99_ms": 100.0,
    "streams_p99_ms": 100.0, "rss_growth_mib": 8.0, "streams_left": 0, "connections_left": 0, "redis_left": 8,
}  # fmt: skip


def run(load: Load) -> _JSON:
    """All figures of one run. Raises RuntimeError when a part of it fails."""
    with EmbeddedRedis() as server, _worker(server.url), _gateway(server.url, max(load.connections, 10_000)) as gateway:
        found = _clients(server.url, gateway.url, ("latency", 1, load.seconds))
        found["submit_over_client_ms"] = round(found["http_submit_p50_ms"] - found["client_submit_p50_ms"], 2)
        found["first_token_over_client_ms"] = round(found["http_first_p50_ms"] - found["client_first_p50_ms"], 2)
        before = gateway.cpu_seconds(), time.monotonic()
        found |= _clients(server.url, gateway.url, ("submits", load.submitters, load.seconds))
        found["submits_cpu"] = round((gateway.cpu_seconds() - before[0]) / (time.monotonic() - before[1]), 2)
        before = gateway.cpu_seconds(), time.monotonic()
        waiting = max(load.seconds, 1)
        found |= _clients(server.url, gateway.url, ("polls", load.polls, waiting), ("streams", load.streams, waiting))
        found["waiting_cpu"] = round((gateway.cpu_seconds() - before[0]) / (time.monotonic() - before[1]), 2)
        found |= _connections(server.url, gateway, load)
        found |= _memory(server.url, gateway, load)
        found |= _left(server.url, gateway)
        return found


class _Gateway:
    """The gateway's process, seen from outside."""

    def __init__(self, pid: int, url: str):
        self._pid = pid
        self.url = url

    def rss_mib(self) -> float:
        """Resident memory."""
        status = Path(f"/proc/{self._pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return round(int(line.split()[1]) / 1024, 1)

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def gauge(self, name: str) -> float:
        with urlopen(f"{self.url}/metrics") as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(f"{name} "):
                    return float(line.split()[1])
        raise RuntimeError(f"the gateway has no metric {name}")


def _connections(redis_url: str, gateway: _Gateway, load: Load) -> _JSON:
    """Many idle connections at once: what they cost, and what they do to others."""
    if not load.connections:
        return {}
    before = gateway.rss_mib()
    process = start("gateway_load", "connections", redis_url, gateway.url, load.connections, min(load.seconds, 5))
    wait_for(process, "open")
    grown = gateway.rss_mib() - before
    output, _ = process.communicate("go\n", timeout=_PATIENCE)
    if process.returncode:
        raise RuntimeError("the clients of connections failed")
    return {**json.loads(output), "kib_per_connection": round(grown * 1024 / load.connections, 1)}


def _memory(redis_url: str, gateway: _Gateway, load: Load) -> _JSON:
    """Growth of the gateway over `load.requests`, after a tenth of them as a warm-up."""
    if not load.requests:
        return {}
    _clients(redis_url, gateway.url, ("mixed", max(8, load.requests // 10), 0))
    before = gateway.rss_mib()
    found = _clients(redis_url, gateway.url, ("mixed", load.requests, 0))
    after = gateway.rss_mib()
    return {**found, "rss_mib": after, "rss_growth_mib": round(after - before, 1)}


def _left(redis_url: str, gateway: _Gateway) -> _JSON:
    """What remains once all clients have gone."""
    limit = time.monotonic() + _PATIENCE

    def look() -> _JSON:
        with redis.Redis.from_url(redis_url) as client:
            here = len(client.client_list())
        # This look is a connection to either.
        return {
            "streams_left": gateway.gauge("millrace_gateway_streams"),
            "connections_left": gateway.gauge("millrace_gateway_connections") - 1,
            "redis_left": here - 1,
        }

    while True:
        found = look()
        if all(met(name, value, TARGETS[name]) for name, value in found.items()) or time.monotonic() > limit:
            return found
        time.sleep(0.5)


def _clients(redis_url: str, url: str, *kinds: tuple[str, int, float]) -> _JSON:
    """Runs these kinds of clients side by side."""
    processes = [start("gateway_load", kind, redis_url, url, count, seconds) for kind, count, seconds in kinds]
    found: _JSON = {}
    for process, (kind, _, _) in zip(processes, kinds, strict=True):
        output, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the clients of {kind} failed")
        found |= json.loads(output)
    return found


@contextmanager
def _worker(redis_url: str) -> Iterator[None]:
    process = start("gateway_worker", redis_url)
    try:
        wait_for(process, "ready")
        yield
    finally:
        process.terminate()
        process.communicate()


@contextmanager
def _gateway(redis_url: str, connections: int = 10_000) -> Iterator[_Gateway]:
    """Allows some more than `connections`: whoever measures is one, too."""
    port, most = free_port(), connections + 100
    command = [sys.executable, "-m", "millrace", "gateway", "--port", str(port), "--redis-url", redis_url]
    command += ["--max-connections", str(most)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("millrace gateway: http"):
                break
        else:
            raise RuntimeError("the gateway did not start")
        gateway = _Gateway(process.pid, f"http://127.0.0.1:{port}")
        yield gateway
    finally:
        process.terminate()
        _, words = process.communicate()
        if words.strip():
            print(words, file=sys.stderr)
