"""Pages of other sites: none may call, unless it is named."""

from __future__ import annotations

import httpx2
import pytest

from fake_worker import register
from gateway_server import GatewayServer
from key_maker import KeyMaker
from millrace import MillraceError
from millrace.gateway import GatewaySettings, models
from millrace.gateway.cors import check_origin

APP = "https://app.example"
ASKING = {
    "origin": APP,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,idempotency-key,x-stainless-lang",
}


def test_nobody_unless_told(http: httpx2.Client) -> None:
    assert "access-control-allow-origin" not in http.get("/v1/models", headers={"origin": APP}).headers
    assert http.options("/v1/jobs", headers=ASKING).status_code == 405


def test_a_browser_asks_first(locked: httpx2.Client) -> None:
    """Without a key, as browsers do."""
    answer = locked.options("/v1/chat/completions", headers=ASKING)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == APP
    allowed = answer.headers["access-control-allow-headers"].lower().split(", ")
    assert {"authorization", "content-type", "idempotency-key", "last-event-id"} <= set(allowed)
    assert "DELETE" in answer.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in answer.headers
    for changed in ({"origin": "https://evil.example"}, {"access-control-request-headers": "x-else"}):
        refused = locked.options("/v1/jobs", headers={**ASKING, **changed})
        assert refused.status_code == 400, changed
    assert locked.options("/v1/jobs").status_code == 401


def test_answers_and_errors_can_be_read(locked: httpx2.Client, make_key: KeyMaker) -> None:
    headers = {**make_key.headers(requests_per_minute=1), "origin": APP}
    answers = [
        locked.get("/v1/models", headers={"origin": APP}),
        locked.post("/v1/jobs", json={"prompt": "a"}, headers=headers),
        locked.post("/v1/jobs", json={"prompt": "a"}, headers=headers),
        locked.get("/v1/else", headers=headers),
        locked.get("/metrics", headers=headers),
    ]
    assert [answer.status_code for answer in answers] == [401, 202, 429, 404, 403]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == APP
        assert "origin" in answer.headers["vary"].lower()
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "retry-after", "x-ratelimit-remaining-tokens"} <= set(exposed)
    other = locked.get("/v1/models", headers={**headers, "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_even_a_crash_can_be_read(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    register(redis_url)

    def crash(info: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(models, "_model", crash)
    with GatewayServer(redis_url, GatewaySettings(cors_origins=("*",))) as gateway:
        answer = httpx2.get(f"{gateway.url}/v1/models", headers={"origin": APP})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    assert answer.headers["access-control-allow-origin"] == "*"
    # The log says what the answer does not.
    assert "a secret" in capfd.readouterr().err


def test_origins() -> None:
    for good in ("https://app.example.com", "http://localhost:3000", "http://[::1]:80", "*"):
        check_origin(good)
    for bad in (
        "app.example.com", "https://a.example/", "https://a.example/x", "ftp://a.example", "https://", "null", "",
        "https://A.example", "https://a@b.example", "https://[", "https://*.example.com", "https://a.example:x",
    ):  # fmt: skip
        with pytest.raises(MillraceError, match="--cors-origin is an origin like"):
            check_origin(bad)
