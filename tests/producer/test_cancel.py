from __future__ import annotations

import time

import pytest
import redis

from fake_worker import FakeWorker
from millrace import Client, ErrorCode, Finished, JobCancelled, JobState, Request, Result, cancellation
from millrace_schemas import TERMINAL, TRANSITIONS, JobEvent, QueueKeys, decode


@pytest.mark.parametrize("state", list(JobState))
def test_the_script_makes_the_moves_of_the_table(
    client: Client, raw: redis.Redis, keys: QueueKeys, state: JobState
) -> None:
    job = client.submit("a", stream=True)
    raw.hset(keys.job(job.id), "state", state)
    before = {key: raw.dump(key) for key in raw.keys("*")}
    control = raw.pubsub()
    control.subscribe(keys.control, keys.done(job.id))
    answer = job.cancel()
    messages = []
    while (message := control.get_message(timeout=0.2)) is not None:
        if message["type"] == "message":
            messages.append((message["channel"].decode(), message["data"].decode()))
    control.close()
    if JobEvent.CANCEL not in TRANSITIONS[state]:
        assert state in TERMINAL
        assert answer == job.state() == state
        assert {key: raw.dump(key) for key in raw.keys("*")} == before
        assert messages == []
    elif state == JobState.QUEUED:
        assert answer == job.state() == TRANSITIONS[state][JobEvent.CANCEL]
        assert messages == [(keys.done(job.id), "cancelled")]
    else:
        # Its worker makes the move.
        assert answer == job.state() == state
        assert job.record().cancel_requested
        assert not raw.exists(keys.result(job.id))
        assert messages == [(keys.control, f"cancel {job.id}")]


def test_a_cancelled_job_is_told_and_counts_no_more(client: Client, raw: redis.Redis, keys: QueueKeys) -> None:
    (job,) = client.submit_many([Request(model="demo", prompt="a", tenant="acme", webhook="https://example.com/hooks")])
    assert raw.zrange(keys.unfinished("acme"), 0, -1) == [job.id.encode()]
    assert raw.zcard(keys.webhooks) == 0
    job.cancel()
    assert raw.zcard(keys.unfinished("acme")) == 0
    assert raw.zrange(keys.webhooks, 0, -1) == [job.id.encode()]


def test_a_queued_job_ends_at_once(client: Client, raw: redis.Redis, keys: QueueKeys) -> None:
    job = client.submit("a", metadata={"user": "7"}, stream=True, deadline=2e9)
    raw.zadd(keys.delayed, {job.id: 2e9})
    raw.set(keys.tokens(job.id), b"1234")
    assert job.cancel() == JobState.CANCELLED
    with pytest.raises(JobCancelled, match="cancelled while it waited") as caught:
        job.result()
    assert caught.value.error.code == ErrorCode.CANCELLED
    result = job.wait()
    assert (result.model, result.metadata, result.attempts) == ("demo", {"user": "7"}, 0)
    assert 0 <= result.timings.total < 10
    assert list(job.events()) == [Finished(result)]
    assert job.record().finished_at is not None
    assert raw.zcard(keys.delayed) == raw.zcard(keys.deadlines) == 0
    assert not raw.exists(keys.tokens(job.id))
    assert raw.xlen(keys.lanes["interactive"]) == 1  # The tombstone: a deleted entry would spoil the group's lag.
    for key in (keys.job(job.id), keys.result(job.id), keys.events(job.id)):
        assert 0 < raw.ttl(key) <= 86_400


def test_cancelling_twice_changes_nothing(client: Client, raw: redis.Redis, keys: QueueKeys) -> None:
    job = client.submit("a")
    job.cancel()
    first = raw.get(keys.result(job.id))
    assert job.cancel() == JobState.CANCELLED
    assert raw.get(keys.result(job.id)) == first


def test_the_result_counts_the_attempts_of_the_moment(
    client: Client, raw: redis.Redis, keys: QueueKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that hands the job back between the client's look and its script."""
    job = client.submit("a")
    build, calls = cancellation._cancelled, []

    def interfere(*args):
        if not calls:
            raw.hset(keys.job(job.id), "attempts", 2)
        calls.append(args)
        return build(*args)

    monkeypatch.setattr(cancellation, "_cancelled", interfere)
    assert job.cancel() == JobState.CANCELLED
    assert len(calls) == 2
    assert decode(raw.get(keys.result(job.id)), Result).attempts == 2


def test_a_request_of_another_release_can_be_cancelled(client: Client, raw: redis.Redis, keys: QueueKeys) -> None:
    job = client.submit("a")
    raw.hset(keys.job(job.id), "request", b"\x07later")
    assert job.cancel() == JobState.CANCELLED
    assert job.wait().model == "demo"


def test_a_running_job_is_ended_by_its_worker(redis_url: str) -> None:
    with FakeWorker(redis_url, hold=True) as worker, Client(redis_url) as client:
        job = client.submit("a")
        while job.state() != JobState.IN_PROGRESS:
            time.sleep(0.01)
        assert job.cancel() == JobState.IN_PROGRESS
        worker.release()
        with pytest.raises(JobCancelled, match="while it ran"):
            job.result(timeout=10)
        assert client.cancel(job.id) == JobState.CANCELLED


def test_a_cancelled_job_is_not_run(redis_url: str) -> None:
    with Client(redis_url) as client, FakeWorker(redis_url, hold=True) as worker:
        client.submit("first")
        while not worker.taken:
            time.sleep(0.01)
        job, last = client.submit("second"), client.submit("third")
        assert job.cancel() == JobState.CANCELLED
        worker.release()
        assert last.result(timeout=10).text == "THIRD"
        assert job.wait().error.message == "cancelled while it waited in the queue"
        assert client.queue_stats().lanes["interactive"].waiting == 0
