"""What the gateway's metrics say of batches: counted from what is due, however much has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import msgspec
import pytest
import redis

from bulk_parts import Batches
from gateway_server import GatewayServer
from millrace.bulk.unfinished import UNATTENDED, Unfinished, _Record, is_expiring, read_unfinished
from millrace.connection import Connection
from millrace_schemas import encode
from millrace_schemas.batch import Batch, BatchStatus
from millrace_schemas.keys import BATCHES_DUE, batch_key
from scraped import Scraped

DAY = 86_400.0


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


@pytest.fixture
def put(raw: redis.Redis) -> Callable[..., None]:
    """Writes a batch as its owner leaves it; `due` is in seconds from now, None: it has ended."""
    now = int(raw.time()[0])

    def write(name: str, *, due: float | None = 5.0, hash: dict[str, Any] | None = None, **fields: Any) -> None:
        batch = Batch(
            id=name, input="file:///in", output="file:///out", completion_window="24h",
            **{"created_at": now, "expires_at": now + DAY, **fields},
        )  # fmt: skip
        raw.hset(batch_key(name), mapping={"record": encode(batch), **(hash or {})})
        if due is not None:
            raw.zadd(BATCHES_DUE, {name: now + due})

    return write


def read(url: str) -> Unfinished:
    return Batches(url).do(lambda store: read_unfinished(store._connection))


def test_counts(redis_url: str, raw: redis.Redis, put: Callable[..., None]) -> None:
    running = {"status": BatchStatus.IN_PROGRESS, "total": 100}
    put("a")
    put("b", **running, hash={"completed": 30, "failed": 2})
    put("c", **running, hash={"completed": 1, "problem": "the disk is full"})
    put("d", **running, hash={"cancel": "1700000000.5"})
    put("e", status=BatchStatus.FINALIZING, total=7, hash={"completed": 7})
    put("over", status=BatchStatus.COMPLETED, total=9, hash={"completed": 9}, due=None)
    # Its owner ended it and died before it said so; and one that is gone.
    put("ended", status=BatchStatus.FAILED, total=9)
    raw.zadd(BATCHES_DUE, {"gone": 0})
    found = read(redis_url)
    assert {str(status): number for status, number in found.by_status.items()} == {
        "validating": 1, "in_progress": 2, "cancelling": 1, "finalizing": 1,
    }  # fmt: skip
    assert (found.total, found.completed, found.failed, found.waiting) == (307, 38, 2, 1)
    assert found.expiring == 0


def test_unattended(redis_url: str, put: Callable[..., None]) -> None:
    put("a", due=-UNATTENDED + 30)
    assert read(redis_url).unattended == 0
    put("b", due=-UNATTENDED - 1)
    assert read(redis_url).unattended == 1


def test_whoever_is_handed_out_is_attended(redis_url: str, put: Callable[..., None]) -> None:
    put("a", due=-1000)
    assert Batches(redis_url).do(lambda store: store.due(10, 5.0)) == ["a"]
    assert read(redis_url).unattended == 0


@pytest.mark.parametrize(
    ("hours", "ended", "expected"),
    [
        (0.5, 0, False),  # nothing is said so early
        (6.5, 0, True),  # a quarter is over, and nothing has ended
        (6.5, 200, True),
        (6.5, 300, False),
        (12.0, 499, True),
        (12.0, 501, False),
        (21.7, 1000, True),  # the last tenth
        (30.0, 1000, True),  # it is being ended
    ],
)
def test_pace(hours: float, ended: int, expected: bool) -> None:
    record = _Record(0.0, DAY, BatchStatus.IN_PROGRESS, 1000, 0.0)
    assert is_expiring(record, ended, hours * 3600) is expected


def test_pace_counts_from_its_begin() -> None:
    record = _Record(0.0, DAY, BatchStatus.IN_PROGRESS, 1000, 10 * 3600.0)
    assert not is_expiring(record, 100, 11 * 3600.0)
    assert is_expiring(record, 50, 11 * 3600.0)


def test_without_a_pace_the_last_tenth_counts() -> None:
    for status, expected in ((BatchStatus.VALIDATING, True), (BatchStatus.FINALIZING, False)):
        record = _Record(0.0, DAY, status)
        assert not is_expiring(record, 0, 20 * 3600.0)
        assert is_expiring(record, 0, 22 * 3600.0) is expected


def test_records_of_another_release_count_too(redis_url: str, raw: redis.Redis, put: Callable[..., None]) -> None:
    put("a", total=5)
    known = msgspec.msgpack.decode(raw.hget(batch_key("a"), "record")[1:])
    raw.hset(batch_key("a"), "record", b"\x01" + msgspec.msgpack.encode({**known, "news": 1}))
    put("b")
    raw.hset(batch_key("b"), "record", b"\x63nothing")
    found = read(redis_url)
    assert (found.total, sum(found.by_status.values())) == (5, 1)


def test_the_gateway_tells(redis_url: str, put: Callable[..., None]) -> None:
    with GatewayServer(redis_url) as gateway:
        page = Scraped(httpx2.get(f"{gateway.url}/metrics").text)
        assert page.value("millrace_batches") == 0
        assert page.types["millrace_batches_unattended"] == "gauge"
        # More than are read at once.
        for number in range(600):
            put(f"b{number}", status=BatchStatus.IN_PROGRESS, total=10, hash={"completed": 1, "problem": "S3 is away"})
        put("late", created_at=1.0, expires_at=2.0, due=-100)
        page = Scraped(httpx2.get(f"{gateway.url}/metrics").text)
    assert page.value("millrace_batches", status="in_progress") == 600
    assert page.value("millrace_batches", status="validating") == 1
    assert page.value("millrace_batch_requests", state="total") == 6000
    assert page.value("millrace_batch_requests", state="completed") == 600
    assert page.value("millrace_batch_requests", state="failed") == 0
    assert page.value("millrace_batches_waiting") == 600
    assert page.value("millrace_batches_expiring") == 1
    assert page.value("millrace_batches_unattended") == 1


def test_without_redis_nothing_is_said_of_batches() -> None:
    with GatewayServer("redis://127.0.0.1:1/0") as gateway:
        page = Scraped(httpx2.get(f"{gateway.url}/metrics", timeout=20).text)
    assert page.value("millrace_redis_up") == 0
    assert "millrace_batches" not in page.types


def test_it_reads_what_is_due_and_no_more(redis_url: str, raw: redis.Redis, put: Callable[..., None]) -> None:
    for number in range(50):
        put(f"over{number}", status=BatchStatus.COMPLETED, due=None)
    put("a")

    async def count(connection: Connection) -> int:
        await read_unfinished(connection)
        before = raw.info("commandstats").get("cmdstat_hmget", {}).get("calls", 0)
        await read_unfinished(connection)
        return int(raw.info("commandstats")["cmdstat_hmget"]["calls"]) - before

    assert Batches(redis_url).do(lambda store: count(store._connection)) == 1
