"""Who is let in: keys in every form, bad headers, revocation, and what an open gateway makes of a key."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx2
import openai
import pytest

from fake_worker import FakeWorker, register
from gateway_server import GatewayServer
from key_maker import KeyMaker
from millrace.gateway import GatewaySettings
from millrace.gateway.app import ROUTES
from millrace.gateway.authentication import Access, access_to

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "hello"}]}
#: Looks like one.
STRANGE = "mk_abcdefghij01_" + "A" * 43
PUBLIC = {"/healthz", "/readyz", "/page/{name}", "/openapi.json", "/docs", "/docs/{name}"}
OPERATORS = {"/", "/status.json", "/metrics"}


def until(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def basic(key: str, user: str = "me") -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()}


def test_openais_client_is_let_in_with_a_key(locked_ai: openai.OpenAI, worker: FakeWorker, make_key: KeyMaker) -> None:
    ai = locked_ai.with_options(api_key=make_key())
    assert ai.chat.completions.create(**CHAT).choices[0].message.content == "HELLO"
    assert [model.id for model in ai.models.list()] == ["demo"]
    pieces = [chunk.choices[0].delta.content for chunk in ai.chat.completions.create(**CHAT, stream=True)]
    assert "".join(piece or "" for piece in pieces) == "HELLO"


def test_openais_client_is_told_that_its_key_is_none(locked_ai: openai.OpenAI) -> None:
    for key in ("none", STRANGE):
        with pytest.raises(openai.AuthenticationError) as caught:
            locked_ai.with_options(api_key=key).chat.completions.create(**CHAT)
        assert (caught.value.code, caught.value.type, caught.value.param) == (
            "invalid_api_key", "invalid_request_error", None,
        )  # fmt: skip


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_every_route_asks_for_a_key(locked: httpx2.Client, make_key: KeyMaker, route: object) -> None:
    pattern = route.path  # type: ignore[attr-defined]
    path = pattern.replace("{id}", "demo-01m808vwx0w3zfy5jfrd18ya95").replace("{name:path}", "demo")
    path = path.replace("{name}", "page.css")
    for method in route.methods:  # type: ignore[attr-defined]
        answer = locked.request(method, path)
        if pattern in PUBLIC:
            assert answer.status_code != 401, method
            continue
        assert answer.status_code == 401
        challenge = answer.headers["www-authenticate"]
        tenants = locked.request(method, path, headers=make_key.headers(tenant="acme"))
        if pattern in OPERATORS:
            assert challenge == 'Basic realm="millrace", charset="UTF-8"'
            assert (tenants.status_code, answer.headers.get("connection")) == (403, None)
            if method != "HEAD":
                assert tenants.json()["error"]["code"] == "operator_key_required"
            assert locked.request(method, path, headers=make_key.headers(operator=True)).status_code == 200
        else:
            assert challenge == 'Bearer realm="millrace"'
            assert tenants.status_code not in (401, 403)


def test_what_nobody_thought_of_needs_a_key() -> None:
    for path in ("/v1/new", "/metrics/", "//metrics", "/page", "/docsx", "/healthz/x", "/pages/x", "", "*"):
        assert access_to(path) is Access.KEY, path


def test_a_line_break_behind_a_path_changes_nothing(locked: httpx2.Client, make_key: KeyMaker) -> None:
    for path in OPERATORS:
        answer = locked.get(f"{path}%0A", headers=make_key.headers(tenant="acme"))
        assert answer.json()["error"]["code"] == "operator_key_required", path


def test_an_unknown_url_is_told_to_nobody_without_a_key(locked: httpx2.Client, make_key: KeyMaker) -> None:
    assert locked.get("/v1/else").status_code == 401
    assert locked.get("/v1/else", headers=make_key.headers()).status_code == 404


def test_permission_denied_comes_out_of_openais_client(
    running_locked_gateway: GatewayServer, locked_ai: openai.OpenAI, make_key: KeyMaker
) -> None:
    ai = locked_ai.with_options(api_key=make_key(), base_url=running_locked_gateway.url)
    with pytest.raises(openai.PermissionDeniedError) as caught:
        ai.get("/metrics", cast_to=object)
    assert caught.value.code == "operator_key_required"


def test_a_key_as_the_password_of_a_browser(locked: httpx2.Client, make_key: KeyMaker) -> None:
    key = make_key(operator=True)
    page = locked.get("/", headers=basic(key))
    assert (page.status_code, "<table" in page.text) == (200, True)
    assert locked.get("/status.json", headers=basic(key, "")).status_code == 200
    assert locked.get("/", headers=basic("wrong")).status_code == 401
    # A page of another site may send what it likes, and the browser adds the credentials.
    job = locked.post("/v1/jobs", json={"prompt": "a"}, headers=basic(key)).json()["id"]
    for site, status in (("cross-site", 401), ("same-site", 401), ("same-origin", 200)):
        headers = {**basic(key), "sec-fetch-site": site}
        assert locked.delete(f"/v1/jobs/{job}", headers=headers).status_code == status, site
        assert locked.get("/", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer \xff\xfe",
        b"Bearer mk_",
        b"Bearer " + b"x" * 30_000,
        b"Basic",
        b"Basic !!!",
        b"Basic " + base64.b64encode(b"no colon"),
        b"Basic " + base64.b64encode(b"a:\xff\xff"),
        b"Digest abc",
        STRANGE.encode(),
    ],
    ids=lambda header: header[:20].decode("latin-1"),
)
def test_bad_headers(running_locked_gateway: GatewayServer, locked: httpx2.Client, header: bytes) -> None:
    parts = urlsplit(running_locked_gateway.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as sock:
        sock.sendall(
            b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: " + header + b"\r\nconnection: close\r\n\r\n"
        )
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_api_key"


def test_forms_of_the_header(locked: httpx2.Client, make_key: KeyMaker) -> None:
    key = make_key()
    for header in (f"Bearer {key}", f"bearer {key}", f"BEARER   {key}"):
        assert locked.get("/v1/models", headers={"authorization": header}).status_code == 200, header
    for wrong in (
        key[:-1],
        key + "A",
        key[:-1] + ("A" if key[-1] != "A" else "B"),
        key.upper(),
        key.replace("mk_", ""),
    ):
        assert locked.get("/v1/models", headers={"authorization": f"Bearer {wrong}"}).status_code == 401, wrong
    other = make_key()
    mixed = key[:16] + other[16:]
    assert locked.get("/v1/models", headers={"authorization": f"Bearer {mixed}"}).status_code == 401


def test_the_body_of_whoever_is_not_let_in_is_not_read(running_locked_gateway: GatewayServer) -> None:
    parts = urlsplit(running_locked_gateway.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as sock:
        sock.sendall(b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n{")
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    # The rest never comes, and the connection has ended all the same.
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in answer.lower()


def test_a_revoked_key_is_refused_soon(locked: httpx2.Client, make_key: KeyMaker) -> None:
    key = make_key()
    headers = {"authorization": f"Bearer {key}"}
    assert locked.get("/v1/models", headers=headers).status_code == 200
    make_key.revoke(key)
    until(lambda: locked.get("/v1/models", headers=headers).status_code == 401)


def test_an_expired_key_is_refused(locked: httpx2.Client, make_key: KeyMaker) -> None:
    headers = make_key.headers(expires_in=1 / 86_400)
    assert locked.get("/v1/models", headers=headers).status_code == 200
    until(lambda: locked.get("/v1/models", headers=headers).status_code == 401)


def test_an_open_gateway_knows_a_key_when_it_sees_one(
    http: httpx2.Client, ai: openai.OpenAI, make_key: KeyMaker
) -> None:
    """OpenAI's clients always send something."""
    assert ai.models.list().data
    for given in ("none", STRANGE):
        assert http.get("/v1/models", headers={"authorization": f"Bearer {given}"}).status_code == 200
        assert http.get("/metrics", headers={"authorization": f"Bearer {given}"}).status_code == 200
    headers = make_key.headers(tenant="acme")
    job = http.post("/v1/jobs", json={"prompt": "a"}, headers=headers).json()["id"]
    assert http.get(f"/v1/jobs/{job}", headers=headers).json()["tenant"] == "acme"
    other = http.post("/v1/jobs", json={"prompt": "a"}).json()["id"]
    assert http.get(f"/v1/jobs/{other}", headers=headers).status_code == 404
    assert http.get("/metrics", headers=headers).status_code == 403
    assert http.get(f"/v1/jobs/{job}").status_code == 200


def test_denied_requests_are_counted(locked: httpx2.Client, make_key: KeyMaker) -> None:
    locked.get("/v1/models")
    lines = locked.get("/metrics", headers=make_key.headers(operator=True)).text
    assert 'millrace_gateway_requests_total{method="GET",route="other",status="401"}' in lines


def test_keys_need_a_redis() -> None:
    from millrace.gateway import create_app
    from millrace.testing import FakeMillrace

    with FakeMillrace() as fake:
        create_app(fake.async_client())
        with pytest.raises(ValueError, match="require_keys needs"):
            create_app(fake.async_client(), GatewaySettings(require_keys=True))


def test_any_host_with_a_key(redis_url: str, locked: httpx2.Client, make_key: KeyMaker) -> None:
    register(redis_url)
    headers = {**make_key.headers(), "host": "api.example.com"}
    assert locked.get("/v1/models", headers=headers).status_code == 200
