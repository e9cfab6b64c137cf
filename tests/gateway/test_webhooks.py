"""Webhooks from the end of a job to their receiver: gateways, Redis and receivers are real."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest
import redis
from typer.testing import CliRunner

from backends import until
from fake_worker import FakeWorker, register
from gateway_server import GatewayServer
from millrace import Client, ErrorCode, ErrorInfo, JobState, Request, Result, WebhookRecord
from millrace.cancellation import RESULT_TTL
from millrace.cli import app
from millrace.embedded import EmbeddedRedis
from millrace.gateway.webhook_addresses import Allowed
from millrace.gateway.webhook_settings import WebhookSettings
from millrace_schemas import QueueKeys, encode
from millrace_schemas.keys import webhook_secret
from receiver import Receiver

HERE = Allowed.of(["127.0.0.1"])
QUICK = WebhookSettings(
    allowed=HERE, delays=(0.05, 0.05, 0.05), timeout=5.0, lease=15.0, poll=0.5, max_retry_after=1.0, grace=0.2
)


@pytest.fixture(scope="module")
def delivering(redis_server: EmbeddedRedis) -> Iterator[GatewayServer]:
    with GatewayServer(redis_server.url, webhooks=QUICK) as server:
        yield server


@pytest.fixture
def url(delivering: GatewayServer, redis_url: str) -> str:
    """Of a gateway that delivers."""
    register(redis_url)
    return delivering.url


@pytest.fixture
def client(url: str, redis_url: str) -> Iterator[Client]:
    with Client(redis_url) as client:
        yield client


@pytest.fixture
def secret(raw: redis.Redis) -> Callable[[], str]:
    return lambda: raw.hget(webhook_secret(""), "current").decode()


def settled(client: Client, job_id: str) -> WebhookRecord:
    """The webhook's record, once nothing more will be done about it."""
    until(lambda: webhook_of(client, job_id).state in ("delivered", "failed"))
    return webhook_of(client, job_id)


def webhook_of(client: Client, job_id: str) -> WebhookRecord:
    found = client.get(job_id).record().webhook
    assert found is not None
    return found


def expire(raw: redis.Redis, keys: QueueKeys, job_id: str) -> None:
    """Ends a job as scripts/finish.lua would, which only workers have."""
    error = ErrorInfo(ErrorCode.DEADLINE_EXCEEDED, "the deadline passed")
    raw.set(keys.result(job_id), encode(Result(id=job_id, model="demo", state=JobState.EXPIRED, error=error)))
    raw.hset(keys.job(job_id), mapping={"state": "expired", "finished_at": time.time()})
    raw.zadd(keys.webhooks, {job_id: int(time.time())})
    raw.publish(keys.webhooks, job_id)


def test_a_completed_job(client: Client, worker: FakeWorker, secret: Callable[[], str]) -> None:
    with Receiver() as receiver:
        job = client.submit("a secret prompt", webhook=receiver.url, metadata={"user": "7"})
        assert settled(client, job.id) == WebhookRecord("delivered", 1, None)
        (call,) = receiver.calls
    event = call.event(secret())
    assert (event.type, event.object, event.job_id) == ("job.completed", "event", job.id)
    assert event.created_at == int(job.record().finished_at or 0)
    assert event.data == {
        "id": job.id, "model": "demo", "state": "completed", "metadata": {"user": "7"}, "error": None,
        "usage": {"prompt_tokens": 10, "completion_tokens": 15, "cached_tokens": 8},
    }  # fmt: skip
    assert b"secret prompt" not in call.body.lower()
    assert (call.path, call.headers["content-type"]) == ("/hooks?from=test", "application/json")
    assert call.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert call.headers["user-agent"].startswith("Millrace-Webhooks")
    assert call.headers["webhook-id"] == event.id == f"evt_{job.id[-26:]}"
    assert abs(int(call.headers["webhook-timestamp"]) - time.time()) < 5


def test_other_ends(client: Client, raw: redis.Redis, keys: QueueKeys, secret: Callable[[], str]) -> None:
    with Receiver() as receiver:
        cancelled = client.submit("a", webhook=receiver.url)
        cancelled.cancel()
        expired = client.submit("a", webhook=receiver.url)
        expire(raw, keys, expired.id)
        receiver.wait(2)
        with FakeWorker(client_url(raw)):
            failed = client.submit("fail", webhook=receiver.url)
            calls = receiver.wait(3)
        for job in (cancelled, expired, failed):
            assert settled(client, job.id).state == "delivered"
        assert len(receiver.calls) == 3
    events = {event.job_id: event for event in (call.event(secret()) for call in calls)}
    assert [events[job.id].type for job in (cancelled, expired, failed)] == [
        "job.cancelled", "job.expired", "job.failed",
    ]  # fmt: skip
    assert events[failed.id].data["error"] == {"code": "internal", "message": "told to fail"}


def client_url(raw: redis.Redis) -> str:
    found = raw.connection_pool.connection_kwargs
    return f"redis://{found['host']}:{found['port']}/0"


def test_jobs_without_a_webhook_tell_nobody(client: Client, worker: FakeWorker, raw: redis.Redis) -> None:
    job = client.submit("a")
    job.result(timeout=10)
    assert job.record().webhook is None
    assert not raw.exists(QueueKeys("demo").webhooks)


def test_over_http(url: str, worker: FakeWorker, secret: Callable[[], str]) -> None:
    with Receiver() as receiver, httpx2.Client(base_url=url, timeout=20) as http:
        job = http.post("/v1/jobs", json={"prompt": "a", "webhook": receiver.url}).json()["id"]
        assert receiver.wait()[0].event(secret()).job_id == job

        def webhook() -> Any:
            return http.get(f"/v1/jobs/{job}").json()["webhook"]

        until(lambda: webhook()["state"] == "delivered")
        assert webhook() == {"state": "delivered", "attempts": 1, "error": None}
        refused = http.post("/v1/jobs", json={"prompt": "a", "webhook": "ftp://example.com"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "webhook")
        unknown = http.post("/v1/completions", json={"model": "demo", "prompt": "a", "webhook": receiver.url})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "unknown_parameter")
        metrics = http.get("/metrics").text
        assert 'millrace_webhooks_waiting{queue="demo"}' in metrics
        assert 'millrace_gateway_webhooks_total{outcome="delivered"}' in metrics


def test_openais_client_unwraps_what_responses_send(url: str, worker: FakeWorker, secret: Callable[[], str]) -> None:
    with (
        Receiver() as receiver,
        httpx2.Client(verify=False) as http,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", http_client=http) as ai,
    ):
        hook = {"webhook": receiver.url}
        made = ai.responses.create(model="demo", input="hello", background=True, extra_body=hook, metadata={"a": "b"})
        (call,) = receiver.wait()
        event = ai.webhooks.unwrap(call.body, call.headers, secret=secret())
        assert (event.type, event.data.id, event.object) == ("response.completed", made.id, "event")
        assert ai.responses.retrieve(event.data.id).metadata == {"a": "b"}
        foreground = ai.responses.create(model="demo", input="hello", extra_body=hook)
        later = ai.webhooks.unwrap(receiver.wait(2)[1].body, receiver.calls[1].headers, secret=secret())
        assert later.data.id == foreground.id
        assert json.loads(call.body)["data"] == {"id": made.id}
        with pytest.raises(openai.BadRequestError, match="webhook"):
            ai.responses.create(model="demo", input="hello", extra_body={"webhook": "nonsense"})
        with pytest.raises(openai.InvalidWebhookSignatureError):
            ai.webhooks.unwrap(call.body + b" ", call.headers, secret=secret())


def test_two_secrets_sign_while_one_takes_the_place_of_the_other(
    client: Client, worker: FakeWorker, redis_url: str, raw: redis.Redis
) -> None:
    old, new = (millrace(redis_url, "secret", *more).strip() for more in ([], ["--rotate"]))
    with Receiver() as receiver:
        client.submit("a", webhook=receiver.url)
        (call,) = receiver.wait()
        assert len(call.headers["webhook-signature"].split(" ")) == 2
        assert call.event(old) == call.event(new)
        with openai.OpenAI(api_key="none", http_client=httpx2.Client(verify=False)) as ai:
            for secret in (old, new):
                ai.webhooks.unwrap(call.body, call.headers, secret=secret)
        raw.hdel(webhook_secret(""), "previous")
        client.submit("a", webhook=receiver.url)
        later = receiver.wait(2)[1]
    assert later.event(new)
    with pytest.raises(ValueError, match="no signature fits"):
        later.event(old)


def test_a_failed_call_is_repeated_with_its_id(client: Client, worker: FakeWorker, secret: Callable[[], str]) -> None:
    with Receiver(500, 404, 200) as receiver:
        job = client.submit("a", webhook=receiver.url)
        assert settled(client, job.id) == WebhookRecord("delivered", 3, None)
        calls = receiver.calls
    assert len({call.headers["webhook-id"] for call in calls}) == 1
    assert len({call.body for call in calls}) == 1
    assert [call.event(secret()).job_id for call in calls] == [job.id] * 3


def test_it_is_given_up_and_can_be_sent_again(
    client: Client, worker: FakeWorker, raw: redis.Redis, keys: QueueKeys, redis_url: str
) -> None:
    with Receiver(500, 500, 500, 500, 200) as receiver:
        job = client.submit("a", webhook=receiver.url)
        assert settled(client, job.id) == WebhookRecord("failed", 4, "HTTP 500")
        assert not raw.exists(keys.webhooks)
        assert 0 < raw.ttl(keys.job(job.id)) <= RESULT_TTL
        millrace(redis_url, "retry", job.id)
        receiver.wait(5)
        until(lambda: webhook_of(client, job.id) == WebhookRecord("delivered", 1, None))


def millrace(redis_url: str, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["webhooks", *arguments, "--redis-url", redis_url])
    assert done.exit_code == 0, done.exception
    return done.output


def test_gone_means_gone(client: Client, worker: FakeWorker) -> None:
    with Receiver(410) as receiver:
        job = client.submit("a", webhook=receiver.url)
        assert settled(client, job.id) == WebhookRecord("failed", 1, "HTTP 410")
    assert len(receiver.calls) == 1


def test_a_receiver_may_ask_for_time(client: Client, worker: FakeWorker) -> None:
    """For a second; and for a day, which is more than it gets."""
    later = time.time() + 86_400
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(later))
    with Receiver((503, {"retry-after": "1"}), (429, {"retry-after": date}), 200) as receiver:
        job = client.submit("a", webhook=receiver.url)
        assert settled(client, job.id).attempts == 3
    first, second, third = (call.at for call in receiver.calls)
    assert second - first > 0.9
    assert third - second > 0.9


def test_places_that_are_not_for_webhooks(client: Client, worker: FakeWorker) -> None:
    """Only 127.0.0.1 is allowed here, by whatever name it goes."""
    with Receiver() as receiver:
        allowed = ["127.0.0.1", "2130706433", "0x7f.1", "127.1", "[::ffff:127.0.0.1]"]
        jobs = [client.submit("a", webhook=f"http://{host}:{receiver.port}/") for host in allowed]
        for job in jobs:
            assert settled(client, job.id).state == "delivered"
        calls = len(receiver.calls)
        refused = ["127.0.0.2", "2130706434", "0x7f.2", "0.0.0.0", "0", "[::1]", "[::]", "169.254.169.254", "10.0.0.1"]
        nobody = client.submit("a", webhook="http://127.0.0.1:1/")
        unknown = client.submit("a", webhook="http://nowhere.invalid/")
        jobs = [client.submit("a", webhook=f"http://{host}:{receiver.port}/") for host in refused]
        for host, job in zip(refused, jobs, strict=True):
            found = settled(client, job.id)
            assert (found.state, found.attempts) == ("failed", 4), host
            assert "is no public address" in str(found.error), host
        assert "no connection" in str(settled(client, nobody.id).error)
        assert "cannot be resolved" in str(settled(client, unknown.id).error)
        assert len(receiver.calls) == calls


def test_a_job_lives_until_somebody_was_told(
    client: Client, raw: redis.Redis, keys: QueueKeys, worker: FakeWorker
) -> None:
    with Receiver(lambda handler: time.sleep(0.5), 200) as receiver:
        job = client.submit("a", webhook=receiver.url, stream=True)
        receiver.wait()
        # Shorter than the schedule, as many workers have it.
        for key in (keys.job(job.id), keys.result(job.id), keys.events(job.id)):
            raw.expire(key, 3600)
        raw.hset(keys.job(job.id), "ttl", 60)
        receiver.wait(2)
        settled(client, job.id)
        for key in (keys.job(job.id), keys.result(job.id), keys.events(job.id)):
            assert 0 < raw.ttl(key) <= 60
        assert job.result(timeout=0).text == "A"


def test_jobs_whose_record_is_gone(client: Client, raw: redis.Redis, keys: QueueKeys, url: str) -> None:
    raw.zadd(keys.webhooks, {"demo-01m808vwx0w3zfy5jfrd18ya95": 1})
    raw.sadd("millrace:webhook-queues", "demo")
    job = client.submit("a", webhook="http://127.0.0.1:1/")
    raw.hset(keys.job(job.id), mapping={"state": "completed", "finished_at": time.time()})
    raw.zadd(keys.webhooks, {job.id: 1})
    raw.publish(keys.webhooks, job.id)
    assert settled(client, job.id).error == "the job's time to live is over"
    assert not raw.exists(keys.webhooks)


def test_each_tenant_has_a_secret(client: Client, worker: FakeWorker, raw: redis.Redis) -> None:
    with Receiver() as receiver:
        client.submit_many([Request(model="demo", prompt="a", tenant="acme", webhook=receiver.url)])
        (call,) = receiver.wait()
        client.submit("a", webhook=receiver.url)
        receiver.wait(2)
    secrets = [raw.hget(webhook_secret(tenant), "current").decode() for tenant in ("acme", "")]
    assert call.event(secrets[0])
    with pytest.raises(ValueError, match="no signature fits"):
        call.event(secrets[1])


def test_one_slow_receiver_does_not_hold_up_others(redis_url: str, client: Client, worker: FakeWorker) -> None:
    """Each of a hundred slow calls takes half a second, at most eight at once; the last job is told meanwhile."""
    with Receiver(lambda handler: time.sleep(0.5)) as slow, Receiver() as fast:
        client.submit_many([{"prompt": "a", "webhook": slow.url} for _ in range(40)])
        job = client.submit("a", webhook=fast.url)
        assert settled(client, job.id).state == "delivered"
        assert len(slow.calls) < 40
        assert slow.most_at_once <= QUICK.max_calls_per_receiver
