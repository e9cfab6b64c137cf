"""Who may have what of a batch, and when: the scripts under BatchStore."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import msgspec
import pytest
import redis

from millrace.bulk.errors import LeaseLost
from millrace.bulk.store import BatchStore, Owned
from millrace.bulk.submitting import make_batch
from millrace.connection import Connection
from millrace_schemas.batch import (
    Batch,
    BatchError,
    BatchEvent,
    BatchStatus,
    Line,
    Part,
    Shard,
    ShardProgress,
    advance_batch,
)
from millrace_schemas.keys import BATCHES_DUE, batch_key

LEASE = 30.0


class Store:
    """A BatchStore for tests that wait for everything."""

    def __init__(self, url: str):
        self.loop = asyncio.new_event_loop()
        self._connection = Connection(url)
        self._store = BatchStore(self._connection)

    def __getattr__(self, name: str):
        do = getattr(self._store, name)
        return lambda *args, **kwargs: self.loop.run_until_complete(do(*args, **kwargs))

    def end(self) -> None:
        self.loop.run_until_complete(self._connection.close())
        self.loop.close()


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    store = Store(redis_url)
    yield store
    store.end()


def begun(store: Store, shards: int) -> Batch:
    batch = make_batch("/nowhere/in.jsonl", "/nowhere", now=store.now())
    store.create(batch)
    whole = store.take(batch.id, LEASE)
    assert whole.shard is None
    open_ = tuple(Shard(n * 100, n * 100 + 100, n + 1) for n in range(shards))
    status = advance_batch(batch.status, BatchEvent.BEGIN)
    changed = {name: getattr(batch, name) for name in batch.__struct_fields__}
    store.move(whole, Batch(**{**changed, "status": status, "shards": open_}), open_shards=True)
    store.leave(whole, 0.0)
    return whole.batch


def finish(store: Store, owned: Owned, **counts: int) -> None:
    store.commit(owned, ShardProgress(done=True), counts)
    store.leave(owned, 0.0)


def test_each_shard_has_one_owner(store: Store) -> None:
    batch = begun(store, 3)
    owned = [store.take(batch.id, LEASE) for _ in range(3)]
    assert [one.shard for one in owned] == [0, 1, 2]
    assert store.take(batch.id, LEASE) is None
    store.leave(owned[1], 0.0)
    assert store.take(batch.id, LEASE).shard == 1


def test_one_process_begins_no_shard_before_it_has_ended_one(store: Store) -> None:
    batch = begun(store, 3)
    for _ in range(3):
        owned = store.take(batch.id, LEASE)
        assert owned.shard == 0
        store.leave(owned, 0.0)
    finish(store, store.take(batch.id, LEASE), completed=5)
    assert store.take(batch.id, LEASE).shard == 1


def test_the_whole_is_to_be_had_when_all_shards_have_ended(store: Store) -> None:
    batch = begun(store, 2)
    first, second = store.take(batch.id, LEASE), store.take(batch.id, LEASE)
    finish(store, second, completed=5, prompt_tokens=70)
    assert store.take(batch.id, LEASE) is None
    finish(store, first, completed=3, failed=1)
    whole = store.take(batch.id, LEASE)
    assert whole.shard is None
    assert store.take(batch.id, LEASE) is None
    progress = store.view(batch.id).progress
    assert (progress.completed, progress.failed, progress.prompt_tokens) == (8, 1, 70)


def test_a_lease_that_ended_is_taken_over(store: Store) -> None:
    batch = begun(store, 1)
    slow = store.take(batch.id, 0.05)
    store.commit(slow, ShardProgress(under_way=(Line(1, 0, 10, "a"),)), {"completed": 1})
    time.sleep(0.1)
    successor = store.take(batch.id, LEASE)
    assert successor.progress.under_way == (Line(1, 0, 10, "a"),)
    for late in (
        lambda: store.commit(slow, ShardProgress(done=True), {"completed": 1}),
        lambda: store.keep(slow, LEASE),
    ):
        with pytest.raises(LeaseLost):
            late()
    assert store.view(batch.id).progress.completed == 1


def test_a_commit_whose_reply_was_lost_counts_once(store: Store) -> None:
    batch = begun(store, 1)
    owned = store.take(batch.id, LEASE)
    revision = owned.revision
    for _ in range(2):
        owned.revision = revision
        store.commit(owned, ShardProgress(done=True), {"completed": 4}, Part("a", 10, 4))
    assert store.view(batch.id).progress.completed == 4
    assert store.parts(batch.id) == ([Part("a", 10, 4)], [])
    store.leave(owned, 0.0)
    assert store.take(batch.id, LEASE).shard is None


def test_what_cannot_go_on_rests_and_holds_up_the_shards_behind_it(store: Store, redis_url: str) -> None:
    batch = begun(store, 3)
    owned = store.take(batch.id, LEASE)
    store.leave(owned, 60.0)
    # The next shard would meet the same trouble.
    assert store.take(batch.id, LEASE) is None
    with redis.Redis.from_url(redis_url) as client:
        assert client.zscore(BATCHES_DUE, batch.id) > time.time() + 30
    assert store.resume(batch.id)
    assert store.take(batch.id, LEASE).shard == 0
    assert store.take(batch.id, LEASE).shard == 1


def test_a_resume_takes_nothing_from_an_owner(store: Store) -> None:
    batch = begun(store, 1)
    owned = store.take(batch.id, LEASE)
    assert store.resume(batch.id)
    assert store.take(batch.id, LEASE) is None
    store.keep(owned, LEASE)


def test_after_a_failure_no_shard_begins(store: Store) -> None:
    batch = begun(store, 5)
    first, second = store.take(batch.id, LEASE), store.take(batch.id, LEASE)
    store.fail(batch.id, BatchError("input_changed", "first"))
    store.fail(batch.id, BatchError("input_changed", "second"))
    assert store.take(batch.id, LEASE) is None
    store.keep(second, LEASE)
    assert second.failure == BatchError("input_changed", "first")
    assert second.is_over
    finish(store, first)
    assert store.take(batch.id, LEASE) is None
    finish(store, second)
    whole = store.take(batch.id, LEASE)
    assert (whole.shard, whole.failure) == (None, BatchError("input_changed", "first"))


def test_an_owner_learns_of_a_cancellation(store: Store) -> None:
    batch = begun(store, 2)
    owned = store.take(batch.id, LEASE)
    assert store.cancel(batch.id)
    store.keep(owned, LEASE)
    assert owned.cancel is not None
    # The lines of shards that were not begun have to be answered, too.
    assert store.take(batch.id, LEASE).shard == 1


def test_creating_again_changes_nothing(store: Store, redis_url: str) -> None:
    batch = begun(store, 1)
    store.create(batch)
    assert store.view(batch.id).batch.status is BatchStatus.IN_PROGRESS
    with redis.Redis.from_url(redis_url) as client:
        client.delete(batch_key(batch.id))
    assert store.take(batch.id, LEASE) is None
    assert store.due(10, 1.0) == []


def test_a_take_whose_reply_was_lost_takes_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = begun(store, 3)
    monkeypatch.setattr("secrets.token_hex", lambda size: "the-same")
    first = store.take(batch.id, LEASE)
    assert store.take(batch.id, LEASE).shard == first.shard == 0
    monkeypatch.undo()
    assert store.take(batch.id, LEASE).shard == 1


def test_whoever_goes_on_learns_which_jobs_are_of_no_use(store: Store) -> None:
    batch = begun(store, 2)
    owned = store.take(batch.id, LEASE)
    store.commit(owned, ShardProgress(), {"completed": 3}, answered=[1, 2, 3])
    store.leave(owned, 0.0)
    owned = store.take(batch.id, LEASE)
    assert owned.answered == (1, 2, 3)
    assert store.answered(batch) == [1, 2, 3]
    store.forgot(owned)
    assert store.answered(batch) == []
    store.commit(owned, ShardProgress(done=True), {"completed": 1}, answered=[4])
    assert store.answered(batch) == [4]


def test_a_batch_is_not_finalized_once_its_end_was_asked_for(store: Store) -> None:
    batch = begun(store, 1)
    finish(store, store.take(batch.id, LEASE))
    whole = store.take(batch.id, LEASE)
    assert store.cancel(batch.id)
    finalizing = msgspec.structs.replace(whole.batch, status=BatchStatus.FINALIZING)
    assert not store.move(whole, finalizing, unless_cancelled=True)
    assert whole.cancel is not None
    assert store.view(batch.id).batch.status is BatchStatus.IN_PROGRESS
    cancelling = msgspec.structs.replace(whole.batch, status=BatchStatus.CANCELLING)
    assert store.move(whole, cancelling)
    assert store.view(batch.id).batch.status is BatchStatus.CANCELLING


def test_an_ended_batch_keeps_nothing_for_successors(store: Store, redis_url: str) -> None:
    batch = begun(store, 2)
    for _ in range(2):
        owned = store.take(batch.id, LEASE)
        finish(store, owned, completed=1)
    whole = store.take(batch.id, LEASE)
    store.move(whole, msgspec.structs.replace(whole.batch, status=BatchStatus.COMPLETED), ended=True)
    with redis.Redis.from_url(redis_url) as client:
        names = {name.decode().partition(":")[0] for name in client.hkeys(batch_key(batch.id))}
    assert not names & {"progress", "revision:0", "answered"}
    assert store.view(batch.id).progress.completed == 2
    # Somebody who wakes up now learns that there is nothing left to do.
    assert store.progress_of(owned).done


def test_whoever_comes_too_late_changes_nothing_of_an_ended_batch(store: Store, raw: redis.Redis) -> None:
    batch = begun(store, 1)
    slow = store.take(batch.id, LEASE)
    store.commit(slow, ShardProgress(done=True), {"completed": 1})
    whole = store.take(batch.id, LEASE)
    assert whole.shard is None
    store.move(whole, whole.batch, ended=True)
    store.leave(whole, None)
    assert not store.complain(whole, "it is somebody else's")
    store.leave(slow, 0.0)
    assert store.view(batch.id).problem is None
    assert not raw.zcard(BATCHES_DUE)


def test_a_batch_that_nobody_works_on_says_so(store: Store, redis_url: str) -> None:
    batch = begun(store, 1)
    assert store.view(batch.id).problem is None
    with redis.Redis.from_url(redis_url) as client:
        client.zadd(BATCHES_DUE, {batch.id: time.time() - 60})
        assert "no `millrace bulk` runs" in store.view(batch.id).problem
        assert "no `millrace bulk` runs" in store.newest()[0].problem
    # One that runs hands it out.
    assert store.due(10, 15.0) == [batch.id]
    assert store.view(batch.id).problem is None
