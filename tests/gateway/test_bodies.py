"""Bodies that are none, and everything else that is no request: an error in OpenAI's shape, and the server goes on."""

from __future__ import annotations

import logging
import socket
import time
from urllib.parse import urlsplit

import httpx2
import pytest
import redis

from gateway_server import GatewayServer

JSON = {"content-type": "application/json"}


def error_of(answer: httpx2.Response) -> dict[str, str | None]:
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return body["error"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/jobs"])
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"{]", b"\xff\xfe", b'{"a": NaN}', b"nonsense", b'{"model": "\\ud800"}', b'{"a": 1} x',
        b"[" * 50_000, b'{"a":' * 15_000, b'{"model": "demo", "prompt": ' + b"[" * 40 + b"]" * 40 + b"}",
        b"[]", b"5", b'"text"', b"null",
    ],
    ids=range(15),
)  # fmt: skip
def test_bad_json(http: httpx2.Client, path: str, body: bytes) -> None:
    answer = http.post(path, content=body, headers=JSON)
    assert answer.status_code == 400
    assert error_of(answer)["type"] == "invalid_request_error"


def test_which_json_error(http: httpx2.Client) -> None:
    assert error_of(http.post("/v1/jobs", content=b"{", headers=JSON))["code"] == "invalid_json"
    nested = error_of(http.post("/v1/jobs", content=b'{"prompt":' + b"[" * 40 + b"]" * 40 + b"}", headers=JSON))
    assert "deep" in str(nested["message"])
    fits = error_of(http.post("/v1/jobs", content=b'{"prompt":' + b"[" * 20 + b"]" * 20 + b"}", headers=JSON))
    assert fits["param"] == "prompt"


def test_other_types_of_body(http: httpx2.Client) -> None:
    for headers in ({"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}, {}):
        answer = http.post("/v1/jobs", content=b"{}", headers=headers)
        assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_media_type")
    answer = http.post("/v1/jobs", content=b"{", headers={"content-type": "Application/JSON; charset=utf-8"})
    assert error_of(answer)["code"] == "invalid_json"


def test_a_body_that_is_too_long(http: httpx2.Client, gateway: GatewayServer) -> None:
    answer = http.post("/v1/jobs", content=b" " * 100_001, headers=JSON)
    assert (answer.status_code, error_of(answer)["code"]) == (413, "request_too_large")
    assert answer.headers["connection"] == "close"
    assert http.post("/v1/jobs", content=b" " * 100_000, headers=JSON).status_code == 400


def connect(gateway: GatewayServer) -> socket.socket:
    address = urlsplit(gateway.url)
    return socket.create_connection((address.hostname, address.port), timeout=10)


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
    return data


HEAD = b"POST /v1/jobs HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"


def test_a_declared_length_is_refused_before_the_body_comes(gateway: GatewayServer) -> None:
    with connect(gateway) as sock:
        sock.sendall(HEAD + b"content-length: 9000000000\r\n\r\n")
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"request_too_large"' in answer


def test_a_body_without_length_is_read_up_to_the_limit_only(gateway: GatewayServer) -> None:
    with connect(gateway) as sock:
        sock.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"186A1\r\n" + b" " * 100_001)
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_come(gateway: GatewayServer) -> None:
    with connect(gateway) as sock:
        sock.sendall(HEAD + b"content-length: 10\r\n\r\n{")
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer


def test_a_client_that_leaves_in_its_request(gateway: GatewayServer, http: httpx2.Client) -> None:
    with connect(gateway) as sock:
        sock.sendall(HEAD + b"content-length: 10\r\n\r\n{")
    assert http.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v2", 404, "unknown_url"),
        ("GET", "/v1/chat", 404, "unknown_url"),
        ("POST", "/v1/embeddings", 404, "unknown_url"),
        ("GET", "/v1/jobs/", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("PUT", "/v1/jobs", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/jobs", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("PATCH", "/v1/jobs/demo-01m808vwx0w3zfy5jfrd18ya95", 405, "method_not_allowed"),
    ],
)
def test_urls_and_methods(http: httpx2.Client, method: str, path: str, status: int, code: str) -> None:
    answer = http.request(method, path)
    assert (answer.status_code, error_of(answer)["code"]) == (status, code)
    if status == 405:
        assert answer.headers["allow"]


def test_what_nobody_expected(http: httpx2.Client, raw: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    # A registration under a name that no queue can have: not even Millrace writes that.
    raw.zadd("millrace:models", {b"\xff": 1e12})
    log = logging.getLogger("uvicorn.error")
    log.addHandler(caplog.handler)
    try:
        answer = http.get("/v1/models")
        # It is logged once the answer is out.
        limit = time.monotonic() + 10
        while "UnicodeDecodeError" not in caplog.text and time.monotonic() < limit:
            time.sleep(0.02)
    finally:
        log.removeHandler(caplog.handler)
    assert (answer.status_code, error_of(answer)["code"]) == (500, "internal")
    assert "UnicodeDecodeError" not in answer.text
    assert "UnicodeDecodeError" in caplog.text


def test_without_redis() -> None:
    with GatewayServer("redis://127.0.0.1:1/0", retry_for=0.2) as gateway:
        for method, path in (("GET", "/v1/models"), ("GET", "/readyz"), ("POST", "/v1/chat/completions")):
            body = {"model": "demo", "messages": [{"role": "user", "content": "a"}]} if method == "POST" else None
            answer = httpx2.request(method, gateway.url + path, json=body)
            assert (answer.status_code, error_of(answer)["code"]) == (503, "queue_unavailable")
            assert int(answer.headers["retry-after"]) > 0
        assert httpx2.get(gateway.url + "/healthz").status_code == 200
        assert "millrace_redis_up 0" in httpx2.get(gateway.url + "/metrics").text
