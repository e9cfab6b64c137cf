"""The outbox in Redis, and `millrace webhooks`, without any gateway."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
import redis
from typer.testing import CliRunner

from fake_worker import FakeWorker, register
from millrace import Client, InvalidRequest, JobNotFound, MillraceError, WebhookRecord, WebhookState
from millrace.backend import JOB_TTL
from millrace.cancellation import RESULT_TTL
from millrace.cli import app
from millrace.connection import Connection
from millrace.webhooks.outbox import ROTATION, Outbox, Terms
from millrace_schemas import QueueKeys
from millrace_schemas.keys import webhook_secret

T = TypeVar("T")
URL = "https://example.com/hooks"
TERMS = Terms(most=10, per_receiver=5, lease=30.0)


def use(redis_url: str, do: Callable[[Outbox], Awaitable[T]]) -> T:
    async def run() -> T:
        connection = Connection(redis_url)
        try:
            return await do(Outbox(connection))
        finally:
            await connection.close()

    return asyncio.run(run())


def ended(client: Client, count: int = 1, url: str = URL) -> list[str]:
    """Jobs that were cancelled in the queue."""
    jobs = client.submit_many({"prompt": "a", "webhook": url} for _ in range(count))
    for job in jobs:
        job.cancel()
    return [job.id for job in jobs]


def test_a_claim_belongs_to_one(client: Client, redis_url: str, raw: redis.Redis, keys: QueueKeys) -> None:
    (job,) = ended(client)
    assert raw.ttl(keys.job(job)) > RESULT_TTL

    async def run(outbox: Outbox) -> None:
        assert await outbox.queues() == ["demo"]
        first = await outbox.claim("demo", TERMS, {})
        (claim,) = first.taken
        assert (claim.job_id, claim.url, claim.tenant, claim.attempt) == (job, URL, "", 1)
        assert (first.waiting, first.passed, first.gone) == (1, False, 0)
        assert 29 < (first.next_in or 0) <= 30
        assert (await outbox.claim("demo", TERMS, {})).taken == []
        # The lease is over, and another gateway takes it.
        raw.zadd(keys.webhooks, {job: 1})
        (other,) = (await outbox.claim("demo", TERMS, {})).taken
        assert other.attempt == 2
        assert not await outbox.settle(claim, WebhookState.RETRYING, "late", 9.0)
        assert not await outbox.settle(claim, WebhookState.FAILED, "late")
        assert not await outbox.settle(claim, WebhookState.PENDING)
        assert client.get(job).record().webhook == WebhookRecord("sending", 2, None)
        # What was delivered is delivered, by whomever.
        assert await outbox.settle(claim, WebhookState.DELIVERED)
        assert await outbox.settle(claim, WebhookState.DELIVERED)
        assert not await outbox.settle(other, WebhookState.RETRYING, "too late", 9.0)

    use(redis_url, run)
    assert client.get(job).record().webhook == WebhookRecord("delivered", 2, None)
    assert 0 < raw.ttl(keys.job(job)) <= RESULT_TTL
    assert 0 < raw.ttl(keys.result(job)) <= RESULT_TTL
    assert not raw.exists(keys.webhooks)


def test_a_retry_has_its_time(client: Client, redis_url: str, raw: redis.Redis, keys: QueueKeys) -> None:
    (job,) = ended(client)

    async def run(outbox: Outbox) -> None:
        (claim,) = (await outbox.claim("demo", TERMS, {})).taken
        for key in (keys.job(job), keys.result(job)):
            raw.expire(key, 60)
        assert await outbox.settle(claim, WebhookState.RETRYING, "HTTP 500", 100.0)
        # A repeat, after a lost reply, changes nothing.
        assert not await outbox.settle(claim, WebhookState.RETRYING, "HTTP 500", 500.0)
        again = await outbox.claim("demo", TERMS, {})
        assert not again.taken
        assert 90 < (again.next_in or 0) <= 100
        raw.zadd(keys.webhooks, {job: 1})
        (claim,) = (await outbox.claim("demo", TERMS, {})).taken
        # Longer than the schedule's pauses, from each call on.
        assert raw.ttl(keys.job(job)) > JOB_TTL - 60
        assert raw.ttl(keys.result(job)) > JOB_TTL - 60
        assert await outbox.settle(claim, WebhookState.PENDING)

    use(redis_url, run)
    assert client.get(job).record().webhook == WebhookRecord("pending", 1, None)


def test_busy_receivers_are_passed_over(client: Client, redis_url: str, raw: redis.Redis, keys: QueueKeys) -> None:
    first = ended(client, 4, "https://SLOW.example:8080/a?b=c")
    second = ended(client, 2, "https://fast.example/?x")

    async def run(outbox: Outbox) -> None:
        terms = Terms(most=4, per_receiver=2, lease=30.0)
        claims = await outbox.claim("demo", terms, {"slow.example:8080": 1})
        assert sorted(claim.job_id for claim in claims.taken) == sorted([min(first), *second])
        assert claims.passed
        claims = await outbox.claim("demo", terms, {"fast.example": 2, "slow.example:8080": 2})
        assert (claims.taken, claims.passed, claims.waiting) == ([], True, 6)
        claims = await outbox.claim("demo", terms, {"fast.example": 2})
        assert [claim.job_id for claim in claims.taken] == sorted(first)[1:3]
        claims = await outbox.claim("demo", Terms(most=1, per_receiver=2, lease=30.0), {})
        assert len(claims.taken) == 1
        assert claims.next_in == 0

    use(redis_url, run)


def test_a_crowd_for_a_busy_receiver_is_put_behind(
    client: Client, redis_url: str, raw: redis.Redis, keys: QueueKeys
) -> None:
    """More than one look sees: the one behind them is found at the second look."""
    (slow,), (fast,) = ended(client, 1, "https://slow.example/"), ended(client, 1, "https://fast.example/")
    copies = [f"demo-{number:026d}" for number in range(1000)]
    for copy in copies:
        raw.hset(keys.job(copy), mapping=raw.hgetall(keys.job(slow)))
    raw.zadd(keys.webhooks, {**dict.fromkeys(copies, 5), slow: 6, fast: 7})

    async def run(outbox: Outbox) -> list[str]:
        found = []
        for _ in range(2):
            claims = await outbox.claim("demo", TERMS, {"slow.example": 5})
            found += [claim.job_id for claim in claims.taken]
        return found

    assert use(redis_url, run) == [fast]


def test_entries_without_a_job_are_dropped(client: Client, redis_url: str, raw: redis.Redis, keys: QueueKeys) -> None:
    job = client.submit("a", webhook=URL)
    raw.set(keys.job("demo-string"), "no hash")
    raw.zadd(keys.webhooks, {job.id: 1, "demo-gone": 2, "demo-string": 3})
    claims = use(redis_url, lambda outbox: outbox.claim("demo", TERMS, {}))
    assert (claims.taken, claims.gone, claims.waiting, claims.next_in) == ([], 3, 0, None)


def test_secrets(redis_url: str, raw: redis.Redis) -> None:
    async def run(outbox: Outbox) -> None:
        (first,) = await outbox.secrets("acme")
        assert await outbox.secrets("acme") == [first]
        assert await outbox.secrets("") != [first]
        second, old = await outbox.secrets("acme", rotate=True)
        assert (old, await outbox.secrets("acme")) == (first, [second, first])
        assert second != first
        key = webhook_secret("acme")
        assert ROTATION - 5 < int(raw.hget(key, "previous_until") or 0) - time.time() <= ROTATION
        raw.hset(key, "previous_until", int(time.time()) - 1)
        assert await outbox.secrets("acme") == [second]

    use(redis_url, run)


def millrace(redis_url: str, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["webhooks", *arguments, "--redis-url", redis_url])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command_that_prints_secrets(redis_url: str, raw: redis.Redis) -> None:
    first = millrace(redis_url, "secret")
    assert first.startswith("whsec_")
    assert millrace(redis_url, "secret") == first
    rotated = millrace(redis_url, "secret", "--rotate")
    assert millrace(redis_url, "secret") == rotated != first
    assert raw.hget(webhook_secret(""), "previous").decode() == first.strip()
    assert millrace(redis_url, "secret", "--tenant", "acme") not in (first, rotated)
    with pytest.raises(InvalidRequest, match="tenants have names"):
        millrace(redis_url, "secret", "--tenant", "a/b")


def test_the_command_that_lists(client: Client, redis_url: str, raw: redis.Redis, keys: QueueKeys) -> None:
    assert json.loads(millrace(redis_url, "list", "--json")) == []
    due, waiting = ended(client, 2, "https://example.com/hooks?token=hidden")
    raw.hset(keys.job(waiting), mapping={"webhook_state": "retrying", "webhook_attempts": 2})
    raw.hset(keys.job(waiting), "webhook_error", "bad\x1b[31mnews")
    raw.zadd(keys.webhooks, {due: 1, waiting: time.time() + 100})
    entries = json.loads(millrace(redis_url, "list", "--json"))
    assert [(entry["job"], entry["state"], entry["attempts"]) for entry in entries] == [
        (due, "pending", 0), (waiting, "retrying", 2),
    ]  # fmt: skip
    assert entries[0]["url"] == "https://example.com/hooks?token=hidden"
    table = millrace(redis_url, "list", "--model", "demo")
    assert "example.com" in table
    assert "hidden" not in table
    assert "\x1b[31m" not in table
    assert millrace(redis_url, "list", "--model", "other").count("\n") < table.count("\n")


def test_the_command_that_retries(client: Client, redis_url: str, raw: redis.Redis, keys: QueueKeys) -> None:
    (job,) = ended(client)
    raw.zadd(keys.webhooks, {job: time.time() + 1000})
    raw.hset(keys.job(job), mapping={"webhook_state": "retrying", "webhook_attempts": 3})
    millrace(redis_url, "retry", job)
    assert (raw.zscore(keys.webhooks, job) or 0) <= time.time()
    assert raw.hget(keys.job(job), "webhook_attempts") == b"3"
    use(redis_url, lambda outbox: outbox.claim("demo", TERMS, {}))
    with pytest.raises(InvalidRequest, match="is just being told"):
        millrace(redis_url, "retry", job)
    # Given up.
    raw.zrem(keys.webhooks, job)
    raw.hset(keys.job(job), "webhook_state", "failed")
    millrace(redis_url, "retry", job)
    assert client.get(job).record().webhook == WebhookRecord("pending", 0, None)
    waiting, without = client.submit("a", webhook=URL), client.submit("a")
    with pytest.raises(InvalidRequest, match="has not ended"):
        millrace(redis_url, "retry", waiting.id)
    with pytest.raises(InvalidRequest, match="without a webhook"):
        millrace(redis_url, "retry", without.id)
    with pytest.raises(JobNotFound):
        millrace(redis_url, "retry", "demo-01m808vwx0w3zfy5jfrd18ya95")
    with pytest.raises(InvalidRequest, match="is not a job id"):
        millrace(redis_url, "retry", "nonsense")


def test_a_job_that_has_not_ended_waits(client: Client, redis_url: str) -> None:
    job = client.submit("a", webhook=URL)
    assert job.record().webhook == WebhookRecord("pending", 0, None)
    assert client.submit("b").record().webhook is None


def test_the_message_wakes(client: Client, redis_url: str, raw: redis.Redis) -> None:
    from millrace_schemas.keys import WEBHOOK_CHANNELS

    with raw.pubsub() as listening:
        listening.psubscribe(WEBHOOK_CHANNELS)
        assert listening.get_message(timeout=5) is not None
        (job,) = ended(client)
        client.submit("b").cancel()
        message = listening.get_message(timeout=5)
        assert message is not None
        assert (message["channel"], message["data"]) == (QueueKeys("demo").webhooks.encode(), job.encode())
        assert listening.get_message(timeout=0.1) is None


def test_no_redis() -> None:
    with pytest.raises(MillraceError, match="no Redis"):
        millrace("redis://127.0.0.1:1/0", "list")


def test_other_queues_are_found(redis_url: str, client: Client) -> None:
    register(redis_url, "org/other-7b")
    with FakeWorker(redis_url, "org/other-7b"), Client(redis_url) as other:
        other.submit("a", model="org/other-7b", webhook=URL).result(timeout=10)
    client.submit("a", model="demo", webhook=URL).cancel()
    assert use(redis_url, lambda outbox: outbox.queues()) == ["demo", "org--other-7b"]
    assert len(json.loads(millrace(redis_url, "list", "--json"))) == 2
