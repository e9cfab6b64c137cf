"""What a gateway remembers of keys: how often it asks, how much it keeps, and what it does without Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx2
import pytest

from fake_worker import register
from gateway_server import GatewayServer
from key_maker import KeyMaker
from millrace.api_keys import ApiKey, KeyStore, split_key
from millrace.connection import Connection
from millrace.embedded import EmbeddedRedis
from millrace.gateway import GatewaySettings, key_cache
from millrace.gateway.key_cache import KeyCache
from millrace_schemas import QueueUnavailable
from millrace_schemas.keys import API_KEYS

SECRET = "A" * 43


class CountingStore(KeyStore):
    """Knows how often it was asked."""

    asked = 0

    async def find(self, key_id: str) -> ApiKey | None:
        self.asked += 1
        return await super().find(key_id)


@asynccontextmanager
async def connected(url: str, retry_for: float = 10.0) -> AsyncIterator[CountingStore]:
    connection = Connection(url, retry_for=retry_for)
    try:
        yield CountingStore(connection)
    finally:
        await connection.close()


def with_store(url: str, do: Callable[[CountingStore], Awaitable[None]]) -> None:
    async def run() -> None:
        async with connected(url) as store:
            await do(store)

    asyncio.run(run())


def test_a_key_is_asked_for_once_in_a_while(redis_url: str) -> None:
    async def do(store: CountingStore) -> None:
        cache, brief = KeyCache(store, 60), KeyCache(store, 0)
        key, text = await store.create("k")
        parts = split_key(text)
        assert parts is not None
        # All that come at a time share one question.
        assert await asyncio.gather(*(cache.find(*parts) for _ in range(20))) == [key] * 20
        assert await cache.find(*parts) == key
        assert store.asked == 1
        # The same id with another secret costs nothing.
        assert await cache.find(key.id, SECRET) is None
        assert store.asked == 1
        assert [await brief.find(*parts) for _ in range(3)] == [key] * 3
        assert store.asked == 4

    with_store(redis_url, do)


def test_guesses_fill_no_memory_and_push_no_key_out(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_cache, "_STRANGERS", 10)
    monkeypatch.setattr(key_cache, "_KEYS", 3)

    async def do(store: CountingStore) -> None:
        cache = KeyCache(store, 60)
        keys = [split_key((await store.create("k"))[1]) for _ in range(4)]
        await cache.find(*keys[3])  # type: ignore[misc]
        for i in range(50):
            assert await cache.find(f"guess{i:07}", SECRET) is None
        assert (len(cache._strangers), store.asked) == (10, 51)
        assert await cache.find("guess0000049", SECRET) is None
        assert await cache.find(*keys[3]) is not None  # type: ignore[misc]
        assert store.asked == 51
        for parts in keys:
            assert await cache.find(*parts) is not None  # type: ignore[misc]
        assert len(cache._keys) == 3

    with_store(redis_url, do)


def test_a_new_key_is_known_once_its_id_was_forgotten(redis_url: str) -> None:
    async def do(store: CountingStore) -> None:
        cache = KeyCache(store, 0.05)
        key, text = await store.create("k")
        parts = split_key(text)
        assert parts is not None
        await store.revoke(key.id)
        assert await cache.find(*parts) is None
        await store._connection.call(lambda redis: redis.hset(API_KEYS, key.id, b"\xffnot ours"))
        await asyncio.sleep(0.06)
        # What another release wrote opens nothing here, and breaks nothing.
        assert await cache.find(*parts) is None
        assert (await store.all(), await store.any_live()) == ([], False)

    with_store(redis_url, do)


def test_a_client_that_leaves_takes_nobodys_answer_along(redis_url: str) -> None:
    async def do(store: CountingStore) -> None:
        cache = KeyCache(store, 60)
        key, text = await store.create("k")
        first = asyncio.create_task(cache.find(*split_key(text)))  # type: ignore[misc]
        second = asyncio.create_task(cache.find(*split_key(text)))  # type: ignore[misc]
        await asyncio.sleep(0)
        first.cancel()
        assert await second == key
        assert store.asked == 1

    with_store(redis_url, do)


def test_without_redis_a_known_key_counts_on() -> None:
    async def run() -> None:
        with EmbeddedRedis() as server:
            async with connected(server.url, retry_for=0.1) as store:
                cache = KeyCache(store, 0.01)
                key, text = await store.create("k")
                parts = split_key(text)
                assert parts is not None
                assert await cache.find(*parts) == key
                server.stop()
                await asyncio.sleep(0.02)
                assert await cache.find(*parts) == key
                assert await cache.find(key.id, SECRET) is None
                with pytest.raises(QueueUnavailable, match="the key cannot be looked up: no Redis at"):
                    await cache.find("abcdefghij01", SECRET)

    asyncio.run(run())


def test_without_redis_an_unknown_key_is_asked_to_come_again() -> None:
    with EmbeddedRedis() as server:
        register(server.url)
        make_key = KeyMaker(server.url)
        known, fresh = make_key.headers(), make_key.headers()
        settings = GatewaySettings(require_keys=True, key_seconds=0.01)
        with GatewayServer(server.url, settings, retry_for=0.1) as gateway:
            assert httpx2.get(f"{gateway.url}/v1/models", headers=known).status_code == 200
            server.stop()
            answers = [httpx2.get(f"{gateway.url}/v1/models", headers=headers) for headers in (known, fresh)]
            assert httpx2.get(f"{gateway.url}/healthz").status_code == 200
            assert httpx2.get(f"{gateway.url}/v1/models").status_code == 401
    # Both are refused: one at the door, one by what it asked for.
    assert [(a.status_code, a.json()["error"]["code"], a.headers["retry-after"]) for a in answers] == [
        (503, "queue_unavailable", "5")
    ] * 2
    assert ["cannot be looked up" in a.text for a in answers] == [False, True]
