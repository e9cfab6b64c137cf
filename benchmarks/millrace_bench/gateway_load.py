"""The clients of `millrace bench gateway`, each kind in a process of its own.

Run as `python -m millrace_bench.gateway_load <kind> <redis url> <gateway url> <count> <seconds>`; prints one JSON
object. How late an answer is, is told from Redis' own clock, which is this machine's: `finished_at` of a job, and the
milliseconds in the id of an event.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from millrace import AsyncClient, Tokens

from .gateway_worker import IDLE_MODEL, MODEL
from .http_load import HttpConnection

_PROMPT = "Uppercase every word: quiet river"
#: Events of one stream, and seconds between them unless the run is short.
_TOKENS, _EVERY = 20, 0.25
_JSON = dict[str, Any]


def summary(values: list[float], name: str) -> _JSON:
    """Median and 99th percentile in milliseconds."""
    values = sorted(values)
    if not values:
        raise RuntimeError(f"{name}: nothing was measured")
    return {
        f"{name}_p50_ms": round(values[len(values) // 2] * 1000, 2),
        f"{name}_p99_ms": round(values[len(values) * 99 // 100] * 1000, 2),
        f"{name}_count": len(values),
    }


def job(model: str = MODEL, *, stream: bool = False, **metadata: object) -> _JSON:
    """A body for POST /v1/jobs, and arguments of `submit`."""
    return {
        "model": model, "prompt": _PROMPT, "sampling": {"max_tokens": 16}, "stream": stream,
        "metadata": {name: str(value) for name, value in metadata.items()},
    }  # fmt: skip


async def latency(redis_url: str, url: str, count: int, seconds: float) -> _JSON:
    """One caller, turn by turn through the client alone and over HTTP, so that both see the same machine."""
    times: dict[str, list[float]] = {"client_submit": [], "http_submit": [], "client_first": [], "http_first": []}
    async with AsyncClient(redis_url) as client:
        http = await HttpConnection.open(url)
        packed = http.packed("POST", "/v1/jobs", job(IDLE_MODEL))

        async def client_first() -> None:
            handle = await client.submit(**job(stream=True))
            events = handle.events()
            async for event in events:
                if isinstance(event, Tokens):
                    return

        async def http_first() -> None:
            body = {"model": MODEL, "prompt": _PROMPT, "max_tokens": 16, "stream": True}
            first = True
            began = time.perf_counter()
            async for event in http.events("POST", "/v1/completions", body):
                if first and b'"text":"A"' in event:
                    times["http_first"].append(time.perf_counter() - began)
                    first = False

        kinds: list[tuple[str, Callable[[], Awaitable[object]]]] = [
            ("client_submit", lambda: client.submit(**job(IDLE_MODEL))),
            ("http_submit", lambda: http.send(packed)),
            ("client_first", client_first),
        ]
        for _ in range(20):
            await asyncio.gather(*(do() for _, do in kinds))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for name, do in kinds:
                began = time.perf_counter()
                await do()
                times[name].append(time.perf_counter() - began)
            await http_first()
        await http.close()
    found: _JSON = {}
    for name, values in times.items():
        found |= summary(values, name)
    return found


async def submits(redis_url: str, url: str, count: int, seconds: float) -> _JSON:
    """`count` connections, each with one request under way."""
    times: list[float] = []
    end = time.monotonic() + seconds

    async def one() -> None:
        http = await HttpConnection.open(url)
        packed = http.packed("POST", "/v1/jobs", job(IDLE_MODEL))
        while time.monotonic() < end:
            began = time.perf_counter()
            status, body = await http.send(packed)
            if status != 202:
                raise RuntimeError(f"{status} {body!r}")
            times.append(time.perf_counter() - began)
        await http.close()

    began = time.monotonic()
    await asyncio.gather(*(one() for _ in range(count)))
    return {"submits_per_s": round(len(times) / (time.monotonic() - began)), **summary(times, "submits")}


async def polls(redis_url: str, url: str, count: int, seconds: float) -> _JSON:
    """`count` clients that submit a job and wait for its end, again and again."""
    late: list[float] = []
    end = time.monotonic() + seconds

    async def one() -> None:
        http = await HttpConnection.open(url)
        while time.monotonic() < end:
            made = await http.ask(
                "POST", "/v1/jobs", job(after=round(random.uniform(0.2, 1) * min(10, seconds), 2)), status=202
            )
            found = await http.ask("GET", f"/v1/jobs/{made['id']}?wait=60")
            late.append(time.time() - found["finished_at"])
        await http.close()

    await asyncio.gather(*(one() for _ in range(count)))
    return summary(late, "polls")


async def streams(redis_url: str, url: str, count: int, seconds: float) -> _JSON:
    """`count` clients that submit a job and read its events, again and again."""
    late: list[float] = []
    end = time.monotonic() + seconds

    every = min(_EVERY, seconds / _TOKENS)

    async def one() -> None:
        await asyncio.sleep(random.uniform(0, _TOKENS * every))
        http = await HttpConnection.open(url)
        while True:
            made = await http.ask("POST", "/v1/jobs", job(stream=True, tokens=_TOKENS, every=every), status=202)
            last = b""
            async for event in http.events("GET", f"/v1/jobs/{made['id']}/events"):
                id_, last, _ = event.split(b"\n", 2)
                late.append(time.time() - int(id_[4:].partition(b"-")[0]) / 1000)
            if last != b"event: finished":
                raise RuntimeError(f"the stream of {made['id']} ended with {last!r}")
            if time.monotonic() > end:
                break
        await http.close()

    await asyncio.gather(*(one() for _ in range(count)))
    return summary(late, "streams")


async def mixed(redis_url: str, url: str, count: int, seconds: float) -> _JSON:
    """`count` requests of all kinds over 32 connections; `seconds` is not looked at."""
    left = count

    async def one() -> None:
        nonlocal left
        http = await HttpConnection.open(url)
        while left > 0:
            left -= 8
            made = await http.ask("POST", "/v1/jobs", job(), status=202)
            await http.ask("GET", f"/v1/jobs/{made['id']}?wait=10")
            streamed = await http.ask("POST", "/v1/jobs", job(stream=True, tokens=3), status=202)
            async for _ in http.events("GET", f"/v1/jobs/{streamed['id']}/events"):
                continue
            body = {"model": MODEL, "messages": [{"role": "user", "content": _PROMPT}]}
            await http.ask("POST", "/v1/chat/completions", body)
            await http.ask("POST", "/v1/jobs", {"prompt": 5}, status=400)
            await http.ask("GET", "/v1/nothing", status=404)
            await http.ask("DELETE", f"/v1/jobs/{made['id']}")
        await http.close()

    began = time.monotonic()
    await asyncio.gather(*(one() for _ in range(32)))
    return {"mixed_count": count - left, "mixed_per_s": round((count - left) / (time.monotonic() - began))}


async def connections(redis_url: str, url: str, count: int, seconds: float) -> _JSON:
    """`count` connections that have had an answer and stay open, and one more that submits."""
    opened: list[HttpConnection] = []

    async def one() -> None:
        http = await HttpConnection.open(url)
        await http.ask("GET", "/healthz")
        opened.append(http)

    http = await HttpConnection.open(url)
    while len(opened) < count:
        await asyncio.gather(*(one() for _ in range(min(100, count - len(opened)))))
    packed = http.packed("POST", "/v1/jobs", job(IDLE_MODEL))
    times: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter()
        await http.send(packed)
        times.append(time.perf_counter() - began)
    # Whoever started this looks at the gateway now.
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for each in (http, *opened):
        await each.close()
    return {"open_connections": len(opened), **summary(times, "open_submit")}


KINDS = {each.__name__: each for each in (latency, submits, polls, streams, mixed, connections)}


def _run(kind: str, redis_url: str, url: str, count: str, seconds: str) -> None:
    import uvloop

    from millrace.gateway.connections import allow_files

    allow_files(int(count) + 100)
    print(json.dumps(uvloop.run(KINDS[kind](redis_url, url, int(count), float(seconds)))))


if __name__ == "__main__":
    _run(*sys.argv[1:])
