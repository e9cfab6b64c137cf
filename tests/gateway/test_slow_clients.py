"""Clients that are slow, silent, gone or too many: each is ended by a limit, and nothing of it stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
import redis

from fake_worker import FakeWorker, register
from gateway_server import GatewayServer
from millrace import event_shard, waiter
from millrace.gateway import GatewaySettings
from millrace.gateway.server import GatewayServer as Server
from millrace_schemas import QueueKeys, Tokens

LIMITS = GatewaySettings(
    keep_alive=0.2, header_timeout=0.5, idle_timeout=1, body_timeout=0.6, write_timeout=0.5, max_connections=300,
    max_streams=100,
)  # fmt: skip
JSON = {"content-type": "application/json"}


@pytest.fixture
def strict(redis_url: str) -> Iterator[GatewayServer]:
    register(redis_url)
    with GatewayServer(redis_url, LIMITS) as server:
        yield server


def until(condition: Callable[[], object], what: object = "") -> None:
    limit = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.02)


def server_of(gateway: GatewayServer) -> Server:
    assert gateway.server is not None
    return gateway.server


def all_gone(gateway: GatewayServer) -> bool:
    """Whether no connection, request or stream is left."""
    server = server_of(gateway)
    state = server.server_state
    app: Any = server.config.app
    return not (server.connections.open or state.connections or state.tasks or app.state.slots.used)


def connect(gateway: GatewayServer) -> socket.socket:
    host, port = gateway.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
    return data


def vanish(sock: socket.socket) -> None:
    """Ends the connection by a reset, as a crash does."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def error_code(answer: bytes) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head
    assert b"connection: close" in head
    found: str = httpx2.Response(200, content=body).json()["error"]["code"]
    return found


def test_headers_that_do_not_come(strict: GatewayServer) -> None:
    with connect(strict) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nhost:")
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert error_code(answer) == "request_timeout"
    until(lambda: all_gone(strict))


def test_headers_that_trickle(strict: GatewayServer) -> None:
    """Time counts from the first byte and not from the last."""
    with connect(strict) as sock:
        sock.settimeout(0.1)
        limit = time.monotonic() + 10
        answer = b""
        while not answer:
            assert time.monotonic() < limit
            sock.sendall(b"x" if time.monotonic() > limit - 9.9 else b"GET / HTTP/1.1\r\n")
            try:
                answer = sock.recv(4096)
            except TimeoutError:
                continue
    assert answer.startswith((b"HTTP/1.1 408 ", b"HTTP/1.1 400 "))


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n", b"\r\n"])
def test_idle_connections(strict: GatewayServer, sent: bytes) -> None:
    with connect(strict) as sock:
        sock.sendall(sent)
        try:
            answer = read_all(sock)
        except ConnectionResetError:
            answer = b""
    assert (b'{"status":"ok"}' in answer) == sent.startswith(b"GET")
    until(lambda: all_gone(strict))


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/nothing"])
def test_a_body_that_trickles(strict: GatewayServer, path: str) -> None:
    """Also one that nobody reads: the answer is out long before."""
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n"
    with connect(strict) as sock:
        sock.sendall(head.encode())
        limit = time.monotonic() + 15
        with contextlib.suppress(OSError):
            while True:
                assert time.monotonic() < limit
                sock.sendall(b" ")
                time.sleep(0.05)
    until(lambda: all_gone(strict))


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nx: " + b"a" * 100_000,
        b"GET /healthz HTTP/1.1\r\n" + b"a: b\r\n" * 20_000,
    ],
    ids=["url", "value", "many"],
)
def test_a_head_without_end(strict: GatewayServer, sent: bytes) -> None:
    with connect(strict) as sock:
        sock.sendall(sent)
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert error_code(answer) == "request_header_fields_too_large"


def test_trailers_without_end(strict: GatewayServer) -> None:
    head = b"POST /v1/jobs HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    with connect(strict) as sock:
        sock.sendall(head + b"0\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(2000):
                sock.sendall(b"a: b\r\n" * 100)
        with contextlib.suppress(ConnectionError):
            read_all(sock)
    until(lambda: all_gone(strict))


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01", b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /a b HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"GET \xff HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\na\x00b: c\r\n\r\n",
    ],
    ids=["tls", "text", "version", "space", "two lengths", "lengths", "bytes", "nul"],
)  # fmt: skip
def test_no_http(strict: GatewayServer, sent: bytes) -> None:
    with connect(strict) as sock:
        sock.sendall(sent)
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert error_code(answer) == "invalid_http"
    assert httpx2.get(f"{strict.url}/healthz").status_code == 200


def test_an_upgrade_is_not_made(strict: GatewayServer) -> None:
    with connect(strict) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nabc")
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in answer


@pytest.mark.parametrize(
    ("framing", "parts"),
    [
        (b"content-length: 14", [b'{"prompt":"a"}']),
        (b"content-length: 14", [b"", b'{"prom', b'pt":"a"}']),
        (b"content-length: 14", [b'{"prompt":"a"}more']),
        (b"content-length: 14", [b'{"prompt":"a"}POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\nmore']),
        (b"transfer-encoding: chunked", [b'6\r\n{"prom\r\n', b'8\r\npt":"a"}\r\n0\r\n\r\n']),
    ],
)
def test_a_body_behind_the_wish_for_an_upgrade(strict: GatewayServer, framing: bytes, parts: list[bytes]) -> None:
    """As the JDK's client sends its first request."""
    head = (
        b"POST /v1/jobs HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\n"
    )
    with connect(strict) as sock:
        sock.sendall(head + framing + b"\r\n\r\n" + parts[0])
        for part in parts[1:]:
            time.sleep(0.05)
            sock.sendall(part)
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 202 "), answer
    assert b"connection: close" in answer


def test_requests_sent_ahead_are_answered_in_order(strict: GatewayServer) -> None:
    with connect(strict) as sock:
        one = b"GET /%s HTTP/1.1\r\nhost: a\r\n\r\n"
        sock.sendall(one % b"healthz" + one % b"nothing" + one % b"healthz")
        answer = b""
        while answer.count(b'{"status":"ok"}') < 2:
            answer += sock.recv(65536)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"404", b"200"]


def test_too_many_connections(strict: GatewayServer) -> None:
    """Those there are stay, the next ones are told, and there is room again when some have gone."""
    held = []
    for _ in range(300):
        held.append(connect(strict))
        held[-1].sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
    for sock in held:
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
    answer = httpx2.get(f"{strict.url}/healthz")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "too_many_connections")
    assert int(answer.headers["retry-after"]) > 0
    for sock in held:
        sock.close()
    until(lambda: all_gone(strict))
    assert httpx2.get(f"{strict.url}/healthz").status_code == 200


def stream_of(gateway: GatewayServer) -> str:
    made = httpx2.post(f"{gateway.url}/v1/jobs", json={"prompt": "a", "stream": True})
    found: str = made.json()["id"]
    return found


def test_clients_that_vanish_while_they_wait_or_read(
    strict: GatewayServer,
    raw: redis.Redis,
    keys: QueueKeys,
    idle_worker: FakeWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Streams, long-polls and whole answers; nothing is left of them, in the gateway or in Redis."""
    # Those of the other tests' gateway, which may go on.
    others = {c["id"] for c in raw.client_list()}
    monkeypatch.setattr(waiter, "RECHECK", 0.5)
    for name, value in {"_FORGET": 0.1, "_IDLE": 0.1, "_BLOCK": 0.2}.items():
        monkeypatch.setattr(event_shard, name, value)
    jobs = [stream_of(strict) for _ in range(10)]
    open_: list[socket.socket] = []
    for job in jobs:
        for path in (f"/v1/jobs/{job}/events", f"/v1/jobs/{job}?wait=60"):
            open_.append(connect(strict))
            open_[-1].sendall(f"GET {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
    body = b'{"model": "demo", "prompt": "a"}'
    for _ in range(10):
        open_.append(connect(strict))
        head = (
            b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        )
        open_[-1].sendall(head % len(body) + body)
    until(lambda: len(list(raw.scan_iter(keys.job("*")))) == 20)
    for job in jobs:
        idle_worker.publish(job, Tokens(0, (1,), "a"))
    for i in range(0, 20, 2):
        assert b"200 OK" in open_[i].recv(4096)
    assert not all_gone(strict)
    for sock in open_:
        vanish(sock)
    until(lambda: all_gone(strict))
    waiting = {"subscribe", "unsubscribe", "xread"}
    until(lambda: not any(c["cmd"] in waiting for c in raw.client_list() if c["id"] not in others))


def test_clients_that_vanish_after_they_sent_ahead(strict: GatewayServer) -> None:
    """The stream ends that is being answered, and not only the request behind it."""
    ahead = b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n"
    sock = connect(strict)
    sock.sendall(f"GET /v1/jobs/{stream_of(strict)}/events HTTP/1.1\r\nhost: a\r\n\r\n".encode() + ahead * 2)
    assert b"200 OK" in sock.recv(4096)
    vanish(sock)
    until(lambda: all_gone(strict))


def test_a_stream_that_is_not_read(
    strict: GatewayServer, raw: redis.Redis, keys: QueueKeys, idle_worker: FakeWorker
) -> None:
    """It is kept back while it does not read, and cut off in the end; one beside it gets everything."""
    job = stream_of(strict)
    with connect(strict) as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.sendall(f"GET /v1/jobs/{job}/events HTTP/1.1\r\nhost: a\r\n\r\n".encode())
        until(lambda: idle_worker.taken)
        text = "a" * 50_000
        for i in range(200):
            idle_worker.publish(job, Tokens(i, (1,), text))
        with httpx2.stream("GET", f"{strict.url}/v1/jobs/{job}/events") as answer:
            seen = 0
            for line in answer.iter_lines():
                seen += line.startswith("data:")
                if seen == 200:
                    break
        until(lambda: all_gone(strict))
    job_state = httpx2.get(f"{strict.url}/v1/jobs/{job}").json()
    assert job_state["state"] == "in_progress"


def test_redis_away_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams and long-polls are told in their own way, and the same gateway serves again afterwards."""
    from millrace.embedded import EmbeddedRedis

    with EmbeddedRedis(durable=True) as server, GatewayServer(server.url, LIMITS, retry_for=0.5) as gateway:
        register(server.url)
        job = stream_of(gateway)
        with redis.Redis.from_url(server.url) as raw:
            raw.xadd(QueueKeys("demo").events(job), {"e": b""})
            raw.delete(QueueKeys("demo").events(job))

        async def run() -> None:
            async with httpx2.AsyncClient(base_url=gateway.url, timeout=20) as http:
                polls = [asyncio.create_task(http.get(f"/v1/jobs/{job}?wait=20")) for _ in range(20)]
                streams = [asyncio.create_task(http.get(f"/v1/jobs/{job}/events")) for _ in range(20)]
                await asyncio.sleep(0.5)
                server.kill()
                for answer in await asyncio.gather(*polls):
                    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_unavailable")
                    assert int(answer.headers["retry-after"]) > 0
                for answer in await asyncio.gather(*streams):
                    # Their headers went out with a sign of life: the error is the last event.
                    assert answer.status_code == 200
                    assert '"code":"queue_unavailable"' in answer.text.splitlines()[-2]
                answer = await http.get(f"/v1/jobs/{job}/events")
                assert '"code":"queue_unavailable"' in answer.text
                await asyncio.to_thread(server.start)
                register(server.url)
                with FakeWorker(server.url):
                    answer = await http.get(f"/v1/jobs/{job}?wait=20")
                    assert answer.json()["state"] == "completed"
                    assert "event: finished" in (await http.get(f"/v1/jobs/{job}/events")).text

        asyncio.run(run())
        until(lambda: all_gone(gateway))
