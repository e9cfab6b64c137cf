"""Who lost a lease changes nothing, whatever it calls; and whoever lost only a reply may call again."""

from __future__ import annotations

from typing import Any

from fake_engine import likely_of
from fake_text import LetterTokenizer
from millrace_schemas import GROUP, JobState, Lane, Sampling, Tokens
from millrace_worker.front.logprobs import AnswerLogprobs
from millrace_worker.stream.checkpoint import read_words, words_from
from millrace_worker.stream.closing import GiveBack
from millrace_worker.stream.consumer import Entries
from millrace_worker.stream.progress import Progress
from millrace_worker.stream.scripts import BEAT, Call, run
from queue_probe import QueueProbe
from stream_parts import Parts, ending_of, with_parts


def everything(probe: QueueProbe) -> dict[bytes, Any]:
    """All that Redis holds, but times to live and idle times."""
    held: dict[bytes, Any] = {}
    for key in sorted(probe.redis.keys()):
        held[key] = probe.redis.dump(key) if probe.redis.type(key) != b"stream" else probe.redis.xrange(key)
    for stream in probe.keys.lanes.values():
        pending = probe.redis.xpending_range(stream, GROUP, "-", "+", 100)
        held[stream.encode() + b" pending"] = [(p["message_id"], p["consumer"]) for p in pending]
    return held


def beat(parts: Parts, lease: Any) -> Call:
    lane = parts.probe.keys.lanes[lease.lane]
    args = (GROUP, parts.name, parts.probe.keys.prefix, 1, lease.entry, lease.job_id, lease.attempt)
    return Call(BEAT, (lane,), args)


def test_a_lost_lease_changes_nothing(redis_url: str, probe: QueueProbe) -> None:
    async def body(old: Parts) -> None:
        probe.submit([1, 2], stream=True)
        leased = await old.lease_one()
        new = old.other()
        await new.consumer.lease(Entries(Lane.INTERACTIVE, (leased.lease.entry,)))
        assert new.taken[0].lease.attempt == 2
        before = everything(probe)
        progress = Progress(leased.lease, [], stream=True)
        progress.tokens += [5, 6]
        calls = [
            ending_of(leased).call(probe.keys, old.name, 60),
            GiveBack(leased.lease, "retry").call(probe.keys, old.name, 60),
            GiveBack(leased.lease, "handover").call(probe.keys, old.name, 60),
        ]
        assert [await run(old.client, call) for call in calls] == [0, 0, 0]
        assert await run(old.client, progress.call(probe.keys, old.name)) == -1
        _, lost, cancelled = await run(old.client, beat(old, leased.lease))
        assert lost == [leased.lease.job_id.encode()]
        assert cancelled == []
        assert everything(probe) == before
        # The owner's own calls all work.
        assert (await run(new.client, beat(new, new.taken[0].lease)))[1] == []
        assert await run(new.client, ending_of(new.taken[0]).call(probe.keys, new.name, 60)) == 1

    with_parts(redis_url, body)


def test_an_older_attempt_of_the_same_worker_is_fenced_too(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        probe.submit([1, 2])
        first = await parts.lease_one()
        assert await run(parts.client, GiveBack(first.lease, "retry").call(probe.keys, parts.name, 60))
        probe.redis.zrem(probe.keys.delayed, first.lease.job_id)
        probe.redis.xadd(probe.keys.lanes[Lane.INTERACTIVE], {"job": first.lease.job_id})
        second = await parts.lease_one()
        assert second.lease.attempt == 2
        assert await run(parts.client, ending_of(first).call(probe.keys, parts.name, 60)) == 0
        assert await run(parts.client, ending_of(second).call(probe.keys, parts.name, 60)) == 1

    with_parts(redis_url, body)


def test_a_repeated_lease_costs_no_attempt(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        job = probe.submit([1, 2])
        leased = await parts.lease_one()
        await parts.consumer.lease(Entries(Lane.INTERACTIVE, (leased.lease.entry,)))
        assert parts.taken[1].lease == leased.lease
        assert probe.job(job)["attempts"] == "1"

    with_parts(redis_url, body)


def test_a_repeated_finish_is_known_as_done(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        job = probe.submit([1, 2], stream=True)
        leased = await parts.lease_one()
        call = ending_of(leased).call(probe.keys, parts.name, 60)
        assert await run(parts.client, call) == 1
        before = everything(probe)
        assert await run(parts.client, call) == 2
        assert everything(probe) == before
        # Another end of the same attempt is too late.
        assert await run(parts.client, ending_of(leased, JobState.FAILED).call(probe.keys, parts.name, 60)) == 0
        assert probe.state(job) == "completed"
        assert len(probe.events(job)) == 1

    with_parts(redis_url, body)


def test_a_repeated_checkpoint_publishes_once(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        job = probe.submit([1, 2], stream=True)
        leased = await parts.lease_one()
        progress = Progress(leased.lease, [], stream=True)
        progress.tokens += [5, 6]
        progress.add_text("ab")
        call = progress.call(probe.keys, parts.name)
        assert await run(parts.client, call) == 8
        progress.tokens += [7]
        # The reply was lost: what came meanwhile waits until the same write is confirmed.
        assert progress.call(probe.keys, parts.name) is call
        progress.confirm(await run(parts.client, call))
        progress.add_text("c")
        progress.confirm(await run(parts.client, progress.call(probe.keys, parts.name)))
        assert not progress.unsaved
        assert words_from(probe.redis.get(probe.keys.tokens(job))) == (5, 6, 7)
        assert probe.events(job)[1:] == [Tokens(0, (5, 6), "ab"), Tokens(2, (7,), "c")]
        assert probe.job(job)["progress"] == "3"

    with_parts(redis_url, body)


def test_log_probabilities_are_checkpointed_with_their_tokens(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        job = probe.submit([1, 2], stream=True, sampling=Sampling(logprobs=2))
        leased = await parts.lease_one()
        tokens: list[int] = []
        logprobs = AnswerLogprobs(2, tokens, [], LetterTokenizer())
        progress = Progress(leased.lease, tokens, stream=True, logprobs=logprobs)
        for ids in ([5, 6], [7]):
            tokens += ids
            logprobs.likely += [likely_of(token, 2) for token in ids]
            call = progress.call(probe.keys, parts.name)
            first = await run(parts.client, call)
            # As if the reply was lost.
            assert await run(parts.client, call) == first
            progress.confirm(first)
        assert not progress.unsaved
        stored = words_from(probe.redis.get(probe.keys.tokens(job)))
        assert read_words(stored, 2) == ([5, 6, 7], [likely_of(token, 2) for token in (5, 6, 7)])
        told = [event.logprobs for event in probe.events(job) if isinstance(event, Tokens)]
        assert told == [logprobs.told(0, 2), logprobs.told(2)]
        assert probe.job(job)["progress"] == "3"

    with_parts(redis_url, body)


def test_a_checkpoint_that_vanished_is_written_whole(redis_url: str, probe: QueueProbe) -> None:
    async def body(parts: Parts) -> None:
        job = probe.submit([1, 2])
        leased = await parts.lease_one()
        progress = Progress(leased.lease, [], stream=False)
        progress.tokens += [5, 6]
        progress.confirm(await run(parts.client, progress.call(probe.keys, parts.name)))
        probe.redis.delete(probe.keys.tokens(job))
        progress.tokens += [7]
        progress.confirm(await run(parts.client, progress.call(probe.keys, parts.name)))
        assert probe.checkpoint(job) == 0
        assert progress.unsaved
        progress.confirm(await run(parts.client, progress.call(probe.keys, parts.name)))
        assert words_from(probe.redis.get(probe.keys.tokens(job))) == (5, 6, 7)

    with_parts(redis_url, body)


def test_a_handed_over_job_comes_back_with_its_tokens(redis_url: str, probe: QueueProbe) -> None:
    async def body(old: Parts) -> None:
        job = probe.submit([1, 2], deadline=probe.now() + 100)
        leased = await old.lease_one()
        assert probe.redis.zcard(probe.keys.deadlines) == 0
        progress = Progress(leased.lease, [], stream=False)
        progress.tokens += [5, 6]
        progress.confirm(await run(old.client, progress.call(probe.keys, old.name)))
        assert await run(old.client, GiveBack(leased.lease, "handover").call(probe.keys, old.name, 60)) == 1
        assert probe.job(job)["attempts"] == "0"
        assert "owner" not in probe.job(job)
        assert probe.redis.zcard(probe.keys.deadlines) == 1
        await old.consumer.leave()
        new = old.other()
        # Even right after an outage: handed over is not the same as idle.
        new.reclaimer.outage()
        assert await new.reclaimer.claim(5) == 1
        assert new.taken[0].checkpoint == (5, 6)
        # The same attempt again, so only the owner's name tells the two apart.
        assert new.taken[0].lease.attempt == leased.lease.attempt == 1
        assert (await run(old.client, beat(old, leased.lease)))[1] == [job.encode()]
        assert await run(old.client, ending_of(leased).call(probe.keys, old.name, 60)) == 0

    with_parts(redis_url, body)
