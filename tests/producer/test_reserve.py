"""Places that are kept for a list of jobs and not taken are free again after a minute."""

from __future__ import annotations

import asyncio

import redis

from fake_worker import register
from millrace.connection import Connection
from millrace_schemas import QueueKeys

JOB_TTL = 1000


def test_places_that_nobody_takes_are_free_again(redis_url: str, raw: redis.Redis, keys: QueueKeys) -> None:
    register(redis_url)
    unfinished = keys.unfinished("acme")

    async def reserve(*ids: str) -> int:
        connection = Connection(redis_url)
        arguments = [3, JOB_TTL, 60, *ids]
        reply = await connection.script("reserve", [unfinished, *map(keys.job, ids)], arguments)
        await connection.close()
        return int(reply)

    assert asyncio.run(reserve("a", "b")) == 1
    # A repeat after a lost reply keeps no more.
    assert asyncio.run(reserve("a", "b")) == 1
    assert asyncio.run(reserve("c", "d")) == 0
    assert raw.zcard(unfinished) == 2
    assert 0 < raw.ttl(unfinished) <= JOB_TTL
    # A job that is there needs no place: a repeat of its list.
    raw.hset(keys.job("c"), "state", "completed")
    assert asyncio.run(reserve("c", "d")) == 1
    assert raw.zscore(unfinished, "c") is None
    # As a minute later.
    for member, _ in raw.zrange(unfinished, 0, -1, withscores=True):
        raw.zincrby(unfinished, -61, member)
    assert asyncio.run(reserve("e", "f", "g")) == 1
    assert set(raw.zrange(unfinished, 0, -1)) == {b"e", b"f", b"g"}
