"""Replies of Redis that never arrive, Redis that goes away, and processes that die between two commands."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from bulk_parts import Batches, BulkProcess, BulkThread, chat_line, outcome, written
from dropping_proxy import DroppingProxy
from fake_worker import FakeWorker
from millrace.bulk.described import status_of
from millrace.bulk.settings import BulkSettings
from millrace.bulk.store import BatchStore, Owned
from millrace.connection import load_script
from millrace.embedded import EmbeddedRedis
from millrace_bench.bulk_chaos_parts import children
from millrace_schemas import QueueKeys
from millrace_schemas.batch import BATCH_TERMINAL, BatchStatus

LINES = 400
#: Commands of a bulk process whose replies may be lost: scripts by their names.
SCRIPTS = (
    "batch_due", "batch_take", "batch_keep", "batch_move", "batch_commit", "batch_leave", "enqueue_many",
)  # fmt: skip


def lines() -> list[str]:
    return [chat_line(f"r{n}", f"hello {n}") for n in range(LINES)]


def marks(name: str) -> bytes:
    """What a call of a script has in it, by its hash or as a whole."""
    source, digest = load_script(name)
    return source.encode() if name == "batch_due" else digest.encode()


def assert_whole(redis_url: str, batches: Batches, batch_id: str, worker: FakeWorker) -> None:
    view = batches.ended(batch_id)
    assert view.batch.status is BatchStatus.COMPLETED, view
    output, errors = outcome(view)
    assert set(output) == {f"r{n}" for n in range(LINES)}
    assert not errors
    assert max(Counter(worker.finished).values()) == 1
    assert len(worker.finished) == LINES
    assert_nothing_left(redis_url)


def assert_nothing_left(redis_url: str) -> None:
    keys = QueueKeys("demo")
    limit = time.monotonic() + 20
    with redis.Redis.from_url(redis_url) as raw:
        while left := [*raw.keys(keys.job("*")), *raw.keys(keys.result("*"))]:
            assert time.monotonic() < limit, f"{len(left)} keys of jobs are left: {left[:3]}"
            time.sleep(0.1)


def test_each_reply_may_be_lost(redis_url: str, redis_server: EmbeddedRedis, batches: Batches, tmp_path: Path) -> None:
    source = written(str(tmp_path / "in.jsonl"), lines())
    flags = ("--lease", "2", "--flush", "0.1", "--window", "64")
    with DroppingProxy(redis_server.port) as proxy, FakeWorker(redis_url) as worker:
        # Twice each, where it is sent as often: at a batch's beginning, and later on.
        proxy.drop(*(marks(name) for name in SCRIPTS for _ in range(2)), b"UNLINK", b"MGET", b"RPUSH", b"HSET")
        with BulkProcess(proxy.url, tmp_path, *flags):
            batch_id = batches.make(source, str(tmp_path / "out"))
            assert_whole(redis_url, batches, batch_id, worker)
        lost = Counter(proxy.dropped)
    # A batch that is over within a second need not be kept.
    assert all(lost[marks(name)] for name in SCRIPTS if name != "batch_keep"), lost
    assert lost[b"UNLINK"] == lost[b"MGET"] == 1


@pytest.mark.parametrize("name", ["batch_create", "batch_cancel", "batch_resume"])
def test_what_a_caller_asks_for_may_lose_its_reply(
    redis_url: str, redis_server: EmbeddedRedis, batches: Batches, tmp_path: Path, name: str
) -> None:
    source = written(str(tmp_path / "in.jsonl"), lines())
    with DroppingProxy(redis_server.port) as proxy:
        far = Batches(proxy.url)
        made = [batches.make(source, str(tmp_path / "out"))]
        # The server has to know the scripts, or all that is lost is that it does not.
        assert not batches.do(lambda store: store.cancel("batch_none"))
        assert not batches.do(lambda store: store.resume("batch_none"))
        proxy.drop(marks(name))
        if name == "batch_create":
            made.append(far.make(source, str(tmp_path / "out")))
        elif name == "batch_cancel":
            assert far.do(lambda store: store.cancel(made[0]))
            assert batches.view(made[0]).cancel is not None
        else:
            assert far.do(lambda store: store.resume(made[0]))
        assert proxy.dropped == [marks(name)]
    views = batches.do(lambda store: store.newest())
    assert [view.batch.id for view in views] == made[::-1]


class Deathbed(DroppingProxy):
    """Calls `kill` when it sees `marker`, which then never gets to Redis; once."""

    def __init__(self, port: int, marker: bytes, kill: Callable[[], None]):
        super().__init__(port)
        self._marker, self._kill = marker, kill
        self.met = 0

    def _matches(self, data: bytes) -> bool:
        if self._marker in data and not self.met:
            self.met += 1
            self._kill()
            raise OSError("its sender is dead")
        return False


@pytest.mark.parametrize(
    "marker",
    [
        b"UNLINK",
        marks("batch_commit"),
        marks("batch_move"),
    ],
    ids=["forget", "commit", "move"],
)
def test_a_process_that_dies_before(
    redis_url: str, redis_server: EmbeddedRedis, batches: Batches, tmp_path: Path, marker: bytes
) -> None:
    source = written(str(tmp_path / "in.jsonl"), lines())
    flags = ("--lease", "2", "--flush", "0.1", "--window", "64")
    with Deathbed(redis_server.port, marker, lambda: bulk.kill()) as proxy, FakeWorker(redis_url) as worker:
        bulk = BulkProcess(proxy.url, tmp_path, *flags)
        with bulk:
            batch_id = batches.make(source, str(tmp_path / "out"))
            limit = time.monotonic() + 30
            while not proxy.met:
                assert time.monotonic() < limit
                time.sleep(0.02)
            bulk.start()
            assert_whole(redis_url, batches, batch_id, worker)


def test_redis_that_was_away_for_a_while(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "redis", durable=True) as server:
        batches = Batches(server.url)
        source = written(str(tmp_path / "in.jsonl"), lines())
        with BulkProcess(server.url, tmp_path) as bulk:
            limit = time.monotonic() + 20
            # RQ's worker has its scheduler below it, and so it reads its queue.
            while not any(children(rq) for rq in children(bulk.pid)):
                assert time.monotonic() < limit
                time.sleep(0.05)
            server.stop()
            # Long enough for several tries of whatever tries again.
            time.sleep(1.5)
            server.start()
            with FakeWorker(server.url):
                view = batches.ended(batches.make(source, str(tmp_path / "out")))
    assert view.batch.status is BatchStatus.COMPLETED


def test_a_cancellation_that_is_accepted_is_kept(
    redis_url: str, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It arrives when the owner of the whole batch has it in its hands, and before it says that it finalizes."""
    real = BatchStore.take
    accepted: list[bool] = []

    async def take(self: BatchStore, batch_id: str, lease: float) -> Owned | None:
        owned = await real(self, batch_id, lease)
        if owned is not None and owned.shard is None and owned.batch.status is BatchStatus.IN_PROGRESS:
            accepted.append(await self.cancel(batch_id))
        return owned

    monkeypatch.setattr(BatchStore, "take", take)
    source = written(str(tmp_path / "in.jsonl"), lines())
    seen: list[str] = []
    with FakeWorker(redis_url), BulkThread(redis_url, BulkSettings(flush_seconds=0.3)):
        batch_id = batches.make(source, str(tmp_path / "out"))
        while not seen or seen[-1] not in BATCH_TERMINAL:
            seen.append(status_of(batches.view(batch_id)))
            time.sleep(0.005)
    assert accepted
    assert (seen[-1] is BatchStatus.CANCELLED) == accepted[0]
    assert BatchStatus.CANCELLING not in seen or BatchStatus.FINALIZING not in seen
