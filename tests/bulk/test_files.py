"""Lists of files."""

from __future__ import annotations

import asyncio

import pytest
import redis

from millrace.bulk.files import FileNotFound, FileStore
from millrace.connection import Connection
from millrace_schemas.batch import BulkFile

FILES = 700


def file(number: int) -> BulkFile:
    return BulkFile(
        id=f"file-{number:04d}", location="file:///nowhere", filename="in.jsonl", size=1, created_at=float(number),
        purpose="batch_output" if number % 350 else "batch", tenant="acme" if number % 2 else "",
    )  # fmt: skip


def test_a_page_costs_what_it_shows(redis_url: str, raw: redis.Redis) -> None:
    async def run() -> None:
        connection = Connection(redis_url)
        store = FileStore(connection)
        await asyncio.gather(*(store.put(file(number)) for number in range(FILES)))
        before = raw.info("stats")["keyspace_hits"]
        newest = await store.page(count=2, after="file-0600")
        assert [found.id for found in newest] == ["file-0599", "file-0598"]
        assert raw.info("stats")["keyspace_hits"] - before < 10
        # More than one round trip brings.
        assert [found.created_at for found in await store.page(count=FILES, newest_first=False)] == list(range(FILES))
        assert [found.created_at for found in await store.page(purpose="batch")] == [350, 0]
        assert len(await store.page("acme", count=FILES)) == FILES // 2
        with pytest.raises(FileNotFound):
            await store.page("acme", after="file-0600")
        await connection.close()

    asyncio.run(run())
