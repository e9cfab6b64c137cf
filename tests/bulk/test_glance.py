"""Batches at a glance: which of them, what one look costs, and what they say of each other's pace."""

from __future__ import annotations

import asyncio
import time

import msgspec
import redis

from batch_maker import moved, new_batch, put
from millrace.bulk.glance import ENDED, UNFINISHED, BulkFiles, Paces, read_batches
from millrace.bulk.store import BatchStore, View
from millrace.connection import Connection
from millrace_schemas.batch import BatchProgress, BatchStatus
from millrace_schemas.keys import batch_key


def look(url: str, paces: Paces | None = None) -> BulkFiles:
    async def read() -> BulkFiles:
        connection = Connection(url)
        try:
            return await read_batches(BatchStore(connection), paces or Paces())
        finally:
            await connection.close()

    return asyncio.run(read())


def reads(raw: redis.Redis) -> int:
    """Batches that were read, ever."""
    return int(raw.info("commandstats").get("cmdstat_hmget", {"calls": 0})["calls"])


def test_none(redis_url: str) -> None:
    assert look(redis_url) == BulkFiles()


def test_a_look_reads_few_of_many(redis_url: str, raw: redis.Redis) -> None:
    for n in range(300):
        put(raw, new_batch(f"ended-{n:03}", age=300 - n, status=BatchStatus.COMPLETED))
    # Old ones, behind all that have ended since.
    put(raw, new_batch("second", age=2000))
    put(raw, new_batch("first", age=3000, status=BatchStatus.IN_PROGRESS, total=4), completed=1)
    before = reads(raw)
    found = look(redis_url)
    assert [one.id for one in found.batches] == ["second", "first", *(f"ended-{n}" for n in range(299, 294, -1))]
    assert (found.unfinished, found.left_out) == (2, 0)
    assert reads(raw) - before <= 2 + 2 + ENDED


def test_more_than_there_is_room_for(redis_url: str, raw: redis.Redis) -> None:
    put(raw, new_batch("ended", status=BatchStatus.COMPLETED))
    for n in range(UNFINISHED + 20):
        put(raw, new_batch(f"b-{n}", age=n + 10))
    before = reads(raw)
    found = look(redis_url)
    assert (found.unfinished, found.batches[-1].id) == (UNFINISHED + 20, "ended")
    assert found.left_out == UNFINISHED + 21 - len(found.batches)
    assert reads(raw) - before <= 2 * UNFINISHED + ENDED


def test_a_batch_that_is_gone(redis_url: str, raw: redis.Redis) -> None:
    """Its lists may outlive it."""
    for name, status in (("gone", BatchStatus.COMPLETED), ("lost", BatchStatus.VALIDATING)):
        put(raw, new_batch(name, status=status))
        raw.delete(batch_key(name))
    put(raw, new_batch("here", age=100, status=BatchStatus.COMPLETED))
    assert [one.id for one in look(redis_url).batches] == ["here"]


def test_batches_of_a_newer_release(redis_url: str, raw: redis.Redis) -> None:
    put(raw, new_batch("known"))
    put(raw, new_batch("new"))
    record = raw.hget(batch_key("new"), "record")
    fields = {**msgspec.msgpack.decode(record[1:]), "priority": 3}
    raw.hset(batch_key("new"), "record", record[:1] + msgspec.msgpack.encode(fields))
    assert look(redis_url) == BulkFiles(unfinished=2)


def test_the_pace_between_looks(redis_url: str, raw: redis.Redis) -> None:
    paces = Paces()
    batch = put(raw, new_batch("b", age=1000, status=BatchStatus.IN_PROGRESS, total=1_000_000), completed=1000)
    (first,) = look(redis_url, paces).batches
    assert first.rate is not None
    assert 0.9 < first.rate <= 1.0
    for completed in (2000, 3000, 4000):
        time.sleep(0.1)
        moved(raw, batch, BatchStatus.IN_PROGRESS, completed=completed, completion_tokens=completed * 10)
        (now,) = look(redis_url, paces).batches
    # Of the last looks, not of the long time before them.
    assert now.rate is not None
    assert now.rate > 100
    assert now.token_rate is not None
    assert now.eta == (1_000_000 - 4000) / now.rate
    raw.hset(batch_key("b"), "cancel", time.time())
    assert look(redis_url, paces).batches[0].status is BatchStatus.CANCELLING
    moved(raw, batch, BatchStatus.CANCELLED, failed=996_000)
    (over,) = look(redis_url, paces).batches
    assert (over.rate, over.eta, over.share, over.status) == (None, None, 1.0, BatchStatus.CANCELLED)


def test_a_look_that_another_one_overtakes(redis_url: str, raw: redis.Redis) -> None:
    """A gateway's looks share paces, and one may learn of a batch later what it was before the other's."""
    paces = Paces()
    batch = put(raw, new_batch("b", age=1000, status=BatchStatus.IN_PROGRESS, total=1_000_000), completed=1000)
    look(redis_url, paces)
    for completed in (2000, 3000):
        time.sleep(0.05)
        moved(raw, batch, BatchStatus.IN_PROGRESS, completed=completed)
        look(redis_url, paces)

    async def overtaken() -> list[BulkFiles]:
        connection = Connection(redis_url)
        store = BatchStore(connection)
        found: list[BulkFiles] = []

        class Slow(BatchStore):
            asked = 0

            async def now(self) -> float:
                self.asked += 1
                # It has read the batches by then.
                if self.asked == 3:
                    await asyncio.sleep(0.05)
                    moved(raw, batch, BatchStatus.IN_PROGRESS, completed=4000)
                    found.append(await read_batches(store, paces))
                return await super().now()

        try:
            found.append(await read_batches(Slow(connection), paces))
            return [*found, await read_batches(store, paces)]
        finally:
            await connection.close()

    looks = [found.batches[0] for found in asyncio.run(overtaken())]
    assert [one.completed for one in looks] == [4000, 3000, 4000]
    for one in looks:
        assert one.rate is not None
        assert one.rate > 100


def test_looks_that_overlap_all_the_time() -> None:
    """As those of many watchers of one gateway do."""
    paces, batch = Paces(), new_batch("b", age=1000, status=BatchStatus.IN_PROGRESS, total=1_000_000)
    for second in range(10):
        view = View(batch, BatchProgress(completed=1000 * second), None, None, 1000.0 + second)
        glance = paces.glance(view, view.at + 1.5)
    assert glance.rate == 1000.0
