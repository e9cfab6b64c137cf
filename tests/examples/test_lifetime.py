"""One client a process, closed at its end; and streams that nobody reads any more."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import httpx2
import pytest
import redis

from backends import EXAMPLES, asgi, load, until

#: Handlers run last in, first out: this one sees what the example's own handler has left.
SCRIPT = """
import atexit
import millrace

def check():
    try:
        backend.get_client().models()
    except millrace.ClientClosed as e:
        print(e)

atexit.register(check)
import {name} as backend
assert backend.get_client() is backend.get_client()
backend.get_client().models()
"""


def connections(raw: redis.Redis) -> int:
    return int(raw.info("clients")["connected_clients"])


def blocked(raw: redis.Redis) -> int:
    return int(raw.info("clients")["blocked_clients"])


@pytest.mark.parametrize("name", ["flask_backend", "django_backend"])
def test_the_client_is_closed_at_exit(name: str, example_environ: None, redis_url: str) -> None:
    command = [sys.executable, "-W", "error", "-c", SCRIPT.format(name=name)]
    done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "the client is closed\n", "")


def test_the_client_is_closed_with_the_lifespan(example_environ: None, raw: redis.Redis) -> None:
    before = connections(raw)
    with asgi(load("fastapi_backend").app) as url, httpx2.Client(base_url=url, verify=False) as http:
        held = set()
        for _ in range(4):
            assert http.get("/answers/demo-01m808vwx0w3zfy5jfrd18ya95").status_code == 404
            held.add(connections(raw))
        # The requests share what the first one opened.
        assert len(held) == 1
        assert held.pop() > before
    until(lambda: connections(raw) == before)


def test_a_stream_that_is_left(
    request: pytest.FixtureRequest, http: httpx2.Client, ask: Callable[..., str], raw: redis.Redis
) -> None:
    job = ask()
    with http.stream("GET", f"/answers/{job}/events") as answer:
        assert answer.status_code == 200
        until(lambda: blocked(raw) == 1)
    if "fastapi" not in request.node.name:
        # A thread under WSGI learns that the browser has left when it has something to say.
        http.delete(f"/answers/{job}")
    until(lambda: blocked(raw) == 0)
