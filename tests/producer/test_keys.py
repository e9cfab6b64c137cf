"""API keys in Redis, and `millrace keys`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import redis
from typer.testing import CliRunner

from dropping_proxy import DroppingProxy
from key_maker import KeyMaker
from millrace import InvalidRequest
from millrace.api_keys import KeyNotFound, KeyStore, split_key
from millrace.cli import app
from millrace_schemas.keys import API_KEYS

KEY = re.compile(r"mk_[0-9a-z]{12}_[A-Za-z0-9_-]{43}")


class Ended(NamedTuple):
    code: int
    out: str
    err: str
    error: BaseException | None


@pytest.fixture
def make_key(redis_url: str) -> KeyMaker:
    return KeyMaker(redis_url)


@pytest.fixture
def run(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Runs `millrace keys ...` in this process."""
    monkeypatch.setenv("MILLRACE_REDIS_URL", redis_url)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*args: str) -> Ended:
        done = CliRunner().invoke(app, ["keys", *args])
        return Ended(done.exit_code, done.stdout, done.stderr, done.exception)

    return call


def test_redis_holds_a_digest_and_no_secret(make_key: KeyMaker, raw: redis.Redis) -> None:
    text = make_key("web backend", tenant="acme")
    assert KEY.fullmatch(text)
    _, key_id, secret = text.split("_", 2)
    everything = b"".join(raw.hgetall(API_KEYS).values())
    assert raw.keys() == [API_KEYS.encode()]
    assert secret.encode() not in everything
    assert hashlib.sha256(secret.encode()).digest() in everything
    (key,) = make_key.run(KeyStore.all)
    assert (key.id, key.name, key.tenant, key.operator) == (key_id, "web backend", "acme", False)
    assert abs(key.created_at - time.time()) < 10
    assert key.opened_by(secret)
    assert not key.opened_by(secret[:-1])
    assert not key.opened_by("")


def test_no_two_keys_are_alike(make_key: KeyMaker) -> None:
    keys = {make_key() for _ in range(5)}
    assert len({split_key(key) for key in keys}) == 5
    assert len({key.split("_", 2)[1] for key in keys}) == len({key.split("_", 2)[2] for key in keys}) == 5


@pytest.mark.parametrize("text", ["", "mk_", "mk_a_b", "sk-" + "a" * 40, "mk_ABCDEFGHIJ01_" + "A" * 43, None])
def test_what_is_no_key(make_key: KeyMaker, text: str | None) -> None:
    assert split_key(make_key() + "\n" if text is None else text) is None


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("name", {"name": ""}),
        ("name", {"name": "x" * 101}),
        ("name", {"name": "a\x1b[2Jb"}),
        ("tenant", {"tenant": "a b"}),
        ("requests_per_minute", {"requests_per_minute": -1}),
        ("tokens_per_minute", {"tokens_per_minute": 10**13}),
        ("max_jobs", {"tenant": "a", "max_jobs": -1}),
        ("max_jobs", {"max_jobs": 5}),
        ("expires_in", {"expires_in": 0}),
        ("expires_in", {"expires_in": float("nan")}),
        ("expires_in", {"expires_in": 1e9}),
    ],
)
def test_bad_keys_are_not_made(make_key: KeyMaker, raw: redis.Redis, param: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        make_key(**{"name": "k", **fields})
    assert caught.value.param == param
    assert not raw.exists(API_KEYS)


def test_an_expired_key_is_no_live_one(make_key: KeyMaker) -> None:
    assert not make_key.run(KeyStore.any_live)
    make_key(expires_in=0.01 / 86_400)
    time.sleep(0.02)
    assert not make_key.run(KeyStore.any_live)
    make_key(expires_in=1)
    assert make_key.run(KeyStore.any_live)


def test_create_prints_the_key_alone(run: Callable[..., Ended], make_key: KeyMaker) -> None:
    flags = "--tenant acme --operator --requests-per-minute 60 --tokens-per-minute 9000 --max-jobs 5 --expires-in 30"
    done = run("create", "--name", "web backend", *flags.split())
    assert (done.code, KEY.fullmatch(done.out.removesuffix("\n")) is not None) == (0, True)
    assert "will ever be shown" in done.err
    assert done.out.strip() not in done.err
    (key,) = make_key.run(KeyStore.all)
    assert (key.name, key.tenant, key.operator, key.max_jobs) == ("web backend", "acme", True, 5)
    assert (key.requests_per_minute, key.tokens_per_minute) == (60, 9000)
    assert key.expires_at == pytest.approx(key.created_at + 30 * 86_400)
    found = json.loads(run("create", "--name", "b", "--json").out)
    assert KEY.fullmatch(found["key"])
    assert (found["id"], found["tenant"], "digest" in found) == (found["key"].split("_")[1], "", False)


def test_list_shows_all_but_the_secrets(run: Callable[..., Ended], make_key: KeyMaker) -> None:
    first, second = make_key("first", tenant="acme", max_jobs=5), make_key("[red]second", expires_in=0.001 / 86_400)
    time.sleep(0.01)
    for flags in ((), ("--json",)):
        shown = run("list", *flags).out
        assert shown.index(first.split("_")[1]) < shown.index(second.split("_")[1])
        assert not any(key.split("_", 2)[2] in shown for key in (first, second))
    found = json.loads(run("list", "--json").out)
    assert [key["name"] for key in found] == ["first", "[red]second"]
    assert all("digest" not in key for key in found)
    lines = run("list").out.splitlines()
    assert any("[red]second" in line and "expired" in line for line in lines)
    assert any("first" in line and "acme" in line and "never" in line for line in lines)


def test_revoke(run: Callable[..., Ended], make_key: KeyMaker) -> None:
    keys = [make_key() for _ in range(3)]
    assert run("revoke", keys[0].split("_")[1]).code == 0
    # All of a key, as it stands in somebody's log.
    assert run("revoke", keys[1]).code == 0
    assert [key.id for key in make_key.run(KeyStore.all)] == [keys[2].split("_")[1]]
    for gone in (keys[0].split("_")[1], "nonsense", ""):
        done = run("revoke", gone)
        assert isinstance(done.error, KeyNotFound)
        assert "`millrace keys list` shows the ids" in str(done.error)


def test_wrong_usage(run: Callable[..., Ended]) -> None:
    for flags in (("create",), ("create", "--name", "a", "--max-jobs", "0"), ("revoke",)):
        assert run(*flags).code == 2, flags


def test_a_lost_reply_makes_no_second_key_and_no_error(make_key: KeyMaker, redis_url: str) -> None:
    with DroppingProxy(int(redis_url.split(":")[2].split("/")[0])) as proxy:
        proxy.drop(b"HSET")
        KeyMaker(proxy.url)("k")
        assert proxy.dropped == [b"HSET"]
        proxy.drop(b"HDEL")
        (key,) = make_key.run(KeyStore.all)
        KeyMaker(proxy.url).run(lambda store: store.revoke(key.id))
        assert proxy.dropped == [b"HSET", b"HDEL"]
    assert make_key.run(KeyStore.all) == []


def test_keys_are_found_by_id(make_key: KeyMaker) -> None:
    text = make_key("k")

    async def find(store: KeyStore) -> tuple[object, object]:
        found, missing = await asyncio.gather(store.find(text.split("_")[1]), store.find("nothing"))
        return found, missing

    found, missing = make_key.run(find)
    assert (found.name, missing) == ("k", None)
