"""Waits, ends, the dead stream and closing: the same cases against both kinds of client."""

from __future__ import annotations

import asyncio
import datetime
import time

import pytest

from millrace import (
    Client,
    ClientClosed,
    ErrorCode,
    Finished,
    InvalidRequest,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobNotFound,
    JobState,
    ResultTimeout,
    Started,
    Tokens,
)
from millrace_schemas import new_job_id
from sites import Site


def test_jobs_that_are_not_there(client: Client) -> None:
    missing = client.get(new_job_id("demo"))
    for ask in (
        missing.state, missing.record, missing.request, missing.cancel, missing.result,
        lambda: missing.result(timeout=0),
    ):  # fmt: skip
        with pytest.raises(JobNotFound) as caught:
            ask()
        assert str(caught.value) == f"there is no job {missing.id}, or its time to live is over"
    for ask in (
        client.get, client.state, client.record, client.request, client.result, client.wait, client.cancel,
        client.events,
    ):  # fmt: skip
        with pytest.raises(InvalidRequest, match="is not a job id"):
            ask("demo-1")


def test_a_wait_that_is_over_leaves_the_job_alone(site: Site, client: Client) -> None:
    job = client.submit("hi")
    with pytest.raises(ResultTimeout, match=r"no result after 0.05 s; the job goes on"):
        job.result(timeout=0.05)
    with pytest.raises(ResultTimeout, match="no result yet"):
        job.wait(timeout=0)
    assert job.state() == JobState.QUEUED
    site.work()
    assert job.result(timeout=10).text == "HI"


def test_a_queued_job_is_cancelled_at_once(client: Client) -> None:
    job = client.submit("a", metadata={"user": "7"}, stream=True, deadline=2e9)
    assert job.cancel() == job.state() == JobState.CANCELLED
    with pytest.raises(JobCancelled, match="cancelled while it waited in the queue") as caught:
        job.result()
    assert caught.value.error.code == ErrorCode.CANCELLED
    result = job.wait()
    assert (result.metadata, result.attempts, result.worker, result.choices) == ({"user": "7"}, 0, None, ())
    assert list(job.events()) == [Finished(result)]
    record = job.record()
    assert record.finished_at is not None
    assert record.cancel_requested
    assert job.cancel() == JobState.CANCELLED
    assert job.wait() == result


def test_a_running_job_is_ended_by_its_worker(site: Site, client: Client) -> None:
    site.work(hold=True)
    job = client.submit("a")
    site.take(job.id)
    assert job.cancel() == JobState.IN_PROGRESS
    site.release()
    with pytest.raises(JobCancelled, match="cancelled while it ran"):
        job.result(timeout=10)
    assert job.record().cancel_requested
    assert client.cancel(job.id) == JobState.CANCELLED


def test_a_deadline_that_passes_in_the_queue(site: Site, client: Client) -> None:
    job = client.submit("a", stream=True, deadline=datetime.timedelta(seconds=0.1), metadata={"user": "7"})
    kept = client.submit("b", deadline=datetime.timedelta(seconds=100))
    site.idle(0.2)
    with pytest.raises(JobExpired, match="the deadline passed before a worker could run the job") as caught:
        job.result(timeout=10)
    assert caught.value.error.code == ErrorCode.DEADLINE_EXCEEDED
    result = job.wait()
    assert (result.metadata, result.attempts, result.worker, result.choices) == ({"user": "7"}, 0, None, ())
    assert list(job.events()) == [Finished(result)]
    assert job.cancel() == job.state() == JobState.EXPIRED
    assert kept.state() == JobState.QUEUED


def test_an_ended_job_is_not_cancelled(site: Site, client: Client) -> None:
    site.work()
    job = client.submit("a")
    job.result(timeout=10)
    assert job.cancel() == job.state() == JobState.COMPLETED
    assert not job.record().cancel_requested


def test_queue_stats(site: Site, client: Client) -> None:
    jobs = [client.submit("a"), client.submit("b"), client.submit("c", lane="batch")]
    stats = client.queue_stats()
    assert (stats.model, stats.delayed, stats.dead) == ("demo", 0, 0)
    assert abs(stats.at - time.time()) < 60
    assert [(lane, s.waiting, s.in_flight) for lane, s in stats.lanes.items()] == [
        ("interactive", 2, 0),
        ("batch", 1, 0),
    ]
    assert stats.lanes["interactive"].oldest_waiting >= 0
    site.work()
    for job in jobs:
        job.result(timeout=10)
    limit = time.monotonic() + 10
    # A worker tells it with its next beat.
    while [(w.name, w.model, w.finished) for w in client.queue_stats().workers] != [("fake", "demo", 3)]:
        assert time.monotonic() < limit
    assert all((s.waiting, s.oldest_waiting) == (0, None) for s in client.queue_stats().lanes.values())
    assert client.queue_stats("other").workers == []


def test_dead_entries(site: Site, client: Client) -> None:
    first, second = client.submit("a", deadline=2e9), client.submit("b")
    for job in (first, second):
        site.kill(job.id)
    assert client.queue_stats().dead == 2
    newest, oldest = client.dead()
    assert (newest.job, newest.lane, newest.code) == (second.id, "interactive", "too_many_attempts")
    assert (newest.reason, newest.attempts, oldest.job) == ("it died", 1, first.id)
    assert client.dead(count=1) == [newest]
    with pytest.raises(JobFailed, match="it died"):
        first.result()
    again = client.requeue_dead(oldest.id)
    assert again.id != first.id
    assert client.dead() == [newest]
    assert (site.waiting()[-1].prompt, site.waiting()[-1].deadline) == ("a", None)
    with pytest.raises(JobNotFound, match=f"the dead stream of demo has no entry {oldest.id}"):
        client.requeue_dead(oldest.id)
    with pytest.raises(InvalidRequest, match="is no dead entry's id"):
        client.purge_dead(entry_ids=["x"])
    assert client.purge_dead(entry_ids=["1-1"]) == client.purge_dead(entry_ids=[]) == 0
    assert client.purge_dead() == 1
    assert client.dead() == []


def test_failures(site: Site, client: Client) -> None:
    assert client.failures() == []
    killed = client.submit("a")
    client.submit("c").cancel()
    site.kill(killed.id)
    expired = client.submit("b", lane="batch", deadline=datetime.timedelta(seconds=0.1))
    site.idle(0.2)
    newest, oldest = client.failures()
    assert (newest.job, newest.lane, newest.code, newest.attempts) == (expired.id, "batch", "deadline_exceeded", 0)
    assert newest.reason == "the deadline passed before a worker could run the job"
    assert (oldest.job, oldest.model, oldest.code, oldest.reason) == (killed.id, "demo", "too_many_attempts", "it died")
    assert client.queue_stats().at - 60 < oldest.at < newest.at
    assert client.failures(count=1) == [newest]


def test_a_closed_client_says_so(site: Site) -> None:
    client = site.client()
    job = client.submit("a", stream=True)
    client.close()
    client.close()
    for ask in (client.models, job.state, lambda: client.submit("a"), lambda: next(client.events(job.id))):
        with pytest.raises(ClientClosed, match="the client is closed"):
            ask()


def test_closing_while_somebody_waits(site: Site) -> None:
    async def run() -> None:
        async with site.async_client() as client:
            job = await client.submit("a")
            waiting = asyncio.create_task(job.result())
            await asyncio.sleep(0.1)
        with pytest.raises(ClientClosed, match="closed while it waited; the job goes on"):
            await waiting
        with pytest.raises(ClientClosed, match="the client is closed"):
            await job.result()

    asyncio.run(run())


def test_many_waits_on_one_loop(site: Site) -> None:
    async def run() -> None:
        async with site.async_client() as client:
            jobs = await client.submit_many({"prompt": f"p{i}"} for i in range(50))
            waits = [asyncio.create_task(job.result(timeout=20)) for job in jobs]
            waits[0].cancel()
            await asyncio.sleep(0.05)
            await asyncio.to_thread(site.work)
            results = await asyncio.gather(*waits[1:])
            assert [r.text for r in results] == [f"P{i}" for i in range(1, 50)]

    asyncio.run(run())


def test_events_on_the_loop(site: Site) -> None:
    async def run() -> None:
        async with site.async_client() as client:
            job = await client.submit("hello there", stream=True)
            stream = job.events()
            reading = asyncio.create_task(anext(stream))
            await asyncio.sleep(0.05)
            await asyncio.to_thread(site.work)
            assert await reading == Started(attempt=1)
            rest = [event async for event in stream]
            assert [type(e) for e in rest] == [Tokens, Tokens, Finished]

    asyncio.run(run())
