from __future__ import annotations

import asyncio
import datetime
import threading
import time

import msgspec
import pytest
import redis

from fake_worker import FakeWorker, register
from millrace import (
    AsyncClient,
    Client,
    InvalidRequest,
    JobFailed,
    JobNotFound,
    JobState,
    Message,
    ModelInfo,
    PartlySubmitted,
    Request,
    Sampling,
    UnknownModel,
)
from millrace.backend import Backend, Refusal
from millrace.connection import Connection
from millrace.redis_backend import RedisBackend
from millrace.submission import Submission
from millrace.testing.memory_backend import MemoryBackend
from millrace.testing.memory_store import MemoryStore
from millrace_schemas import MODELS, QueueKeys, decode, new_job_id


def stored(raw: redis.Redis, keys: QueueKeys, job_id: str) -> Request:
    return decode(raw.hget(keys.job(job_id), "request"), Request)


def test_a_job_comes_back_with_its_answer(redis_url: str) -> None:
    with FakeWorker(redis_url), Client(redis_url) as client:
        job = client.submit("hello", metadata={"user": "7"})
        result = job.result(timeout=10)
        assert (result.text, result.id, result.metadata) == ("HELLO", job.id, {"user": "7"})
        assert job.state() == JobState.COMPLETED
        record = job.record()
        assert record.attempts == 1
        assert record.worker == "fake"
        assert record.created_at <= record.started_at <= record.finished_at
        assert client.result(job.id).text == client.get(job.id).result().text == "HELLO"


def test_a_failed_job_raises_and_can_be_looked_at(redis_url: str) -> None:
    with FakeWorker(redis_url), Client(redis_url) as client:
        job = client.submit("fail please")
        with pytest.raises(JobFailed, match="told to fail") as caught:
            job.result(timeout=10)
        assert caught.value.job_id == job.id
        assert job.wait().state == JobState.FAILED


def test_what_the_queue_holds(client: Client, raw: redis.Redis, keys: QueueKeys) -> None:
    job = client.submit("a", lane="batch", stream=True, deadline=datetime.timedelta(hours=1))
    fields = {k.decode(): v for k, v in raw.hgetall(keys.job(job.id)).items()}
    assert set(fields) == {"request", "lane", "state", "attempts", "created_at", "stream", "deadline"}
    assert (fields["lane"], fields["state"], fields["attempts"], fields["stream"]) == (b"batch", b"queued", b"0", b"1")
    now = time.time()
    assert abs(float(fields["created_at"]) - now) < 10
    assert abs(float(fields["deadline"]) - now - 3600) < 10
    assert raw.zscore(keys.deadlines, job.id) == pytest.approx(float(fields["deadline"]), abs=1e-3)
    assert [f for _, f in raw.xrange(keys.lanes["batch"])] == [{b"job": job.id.encode()}]
    assert 0 < raw.ttl(keys.job(job.id)) <= 7 * 86_400
    assert {k for k in raw.keys("*") if raw.ttl(k) == -1} == {
        k.encode() for k in (keys.lanes["batch"], keys.deadlines, MODELS)
    }


def test_a_seed_is_drawn_once(client: Client, raw: redis.Redis, keys: QueueKeys) -> None:
    seeds = {stored(raw, keys, client.submit("a").id).sampling.seed for _ in range(3)}
    assert len(seeds) == 3
    assert None not in seeds
    assert stored(raw, keys, client.submit("a", sampling=Sampling(seed=5)).id).sampling.seed == 5


def test_what_is_converted(client: Client, raw: redis.Redis, keys: QueueKeys) -> None:
    chat = (Message("system", "be brief"), Message("user", "hi"))
    for job in (
        client.submit("hi", system="be brief"),
        client.submit(messages=[{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]),
        client.submit(messages=list(chat)),
    ):
        assert stored(raw, keys, job.id).messages == chat
        assert stored(raw, keys, job.id).prompt is None
    assert stored(raw, keys, client.submit("a", sampling={"stop": "END"}).id).sampling.stop == ("END",)
    assert stored(raw, keys, client.submit(prompt_token_ids=[1, 2]).id).prompt_token_ids == (1, 2)
    at = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
    assert stored(raw, keys, client.submit("a", deadline=at).id).deadline == at.timestamp()
    assert stored(raw, keys, client.submit("a", deadline=1_900_000_000).id).deadline == 1.9e9


def test_one_idempotency_key_makes_one_job(client: Client, raw: redis.Redis, keys: QueueKeys) -> None:
    found: list[str] = []
    start = threading.Barrier(20)

    def submit() -> None:
        start.wait()
        found.append(client.submit("hi", idempotency_key="order-17").id)

    threads = [threading.Thread(target=submit) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert len(set(found)) == 1
    assert raw.xlen(keys.lanes["interactive"]) == 1
    assert len(raw.keys(keys.job("*"))) == 1
    assert 0 < raw.ttl(keys.idempotency("order-17")) <= 86_400
    assert client.submit("hi", idempotency_key="order-18").id not in found


def test_tenants_share_neither_idempotency_keys_nor_limits(redis_url: str) -> None:
    register(redis_url)

    async def enqueue(backend: Backend, tenant: str, key: str, most: int = 0) -> str | Refusal:
        request = Request(model="demo", prompt="a", tenant=tenant)
        (made,) = await backend.enqueue([Submission.of(request, key, most)])
        return made

    async def body(backend: Backend) -> None:
        ids = [await enqueue(backend, tenant, "order-17") for tenant in ("", "acme", "other", "acme")]
        assert ids[1] == ids[3]
        assert len(set(ids)) == 3
        assert await enqueue(backend, "acme", "order-18", 1) is Refusal.TOO_MANY_JOBS
        assert await enqueue(backend, "acme", "order-17", 1) == ids[1]
        assert isinstance(await enqueue(backend, "acme", "order-18", 2), str)
        assert isinstance(await enqueue(backend, "third", "order-18", 1), str)

    async def both() -> None:
        backend = RedisBackend(Connection(redis_url))
        await body(backend)
        await backend.close()
        store = MemoryStore([ModelInfo(name="demo", max_model_len=9, vocab_size=9, has_chat_template=True)], bool)
        await body(MemoryBackend(store))

    asyncio.run(both())


def test_many_jobs(client: Client, raw: redis.Redis, keys: QueueKeys) -> None:
    requests = [Request(model="demo", prompt=f"p{i}") if i % 2 else {"prompt": f"p{i}"} for i in range(2000)]
    jobs = client.submit_many(requests)
    order = [fields[b"job"].decode() for _, fields in raw.xrange(keys.lanes["interactive"])]
    assert order == [job.id for job in jobs]
    assert len(set(order)) == 2000
    assert [stored(raw, keys, job.id).prompt for job in jobs[::500]] == ["p0", "p500", "p1000", "p1500"]
    assert client.submit_many([]) == []


def test_many_jobs_are_checked_before_any_is_queued(client: Client, raw: redis.Redis, keys: QueueKeys) -> None:
    good = {"prompt": "a"}
    with pytest.raises(InvalidRequest, match=r"^requests\[2\]: sampling.top_p") as caught:
        client.submit_many([good, good, {"prompt": "a", "sampling": {"top_p": 2.0}}])
    assert caught.value.param == "sampling.top_p"
    with pytest.raises(UnknownModel, match=r"^requests\[1\]: .*'nope'.*registered: demo"):
        client.submit_many([good, {"prompt": "a", "model": "nope"}])
    with pytest.raises(InvalidRequest, match=r"^requests\[0\]: expected a Request or a mapping"):
        client.submit_many(["a"])
    assert raw.exists(keys.lanes["interactive"]) == 0


def test_many_jobs_say_which_are_queued_when_the_model_goes_away(
    client: Client, raw: redis.Redis, keys: QueueKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue = AsyncClient._enqueue
    seen = 0

    async def lose_model(self, submissions):
        nonlocal seen
        seen += 1
        if seen == 2:
            raw.delete(keys.model)
        return await enqueue(self, submissions)

    monkeypatch.setattr(AsyncClient, "_enqueue", lose_model)
    with pytest.raises(PartlySubmitted, match=r"256 of 600 jobs are queued.*requests\[256\]") as caught:
        client.submit_many({"prompt": "a"} for _ in range(600))
    error = caught.value
    assert (len(error.submitted), len(error.unsure)) == (256, 344)
    assert raw.xlen(keys.lanes["interactive"]) == 256
    assert client.state(error.submitted[-1]) == JobState.QUEUED
    with pytest.raises(JobNotFound):
        client.state(error.unsure[0])


def test_the_one_registered_model_is_the_default(redis_url: str) -> None:
    with Client(redis_url) as client:
        with pytest.raises(UnknownModel, match="no model is registered; start a worker"):
            client.submit("a")
        register(redis_url, "org/one")
        assert client.submit("a").id.startswith("org--one-")
    register(redis_url, "two")
    with Client(redis_url) as client:
        with pytest.raises(InvalidRequest, match="several models are registered; name one: org/one, two") as caught:
            client.submit("a")
        assert caught.value.param == "model"
        assert [model.name for model in client.models()] == ["org/one", "two"]
    with Client(redis_url, "two") as client:
        assert client.submit("a").id.startswith("two-")
        assert client.submit("a", model="org/one").id.startswith("org--one-")


def test_a_registration_that_ended_is_unknown(client: Client, raw: redis.Redis, keys: QueueKeys) -> None:
    raw.delete(keys.model)
    raw.zadd(MODELS, {"demo": time.time() - 1})
    with pytest.raises(
        UnknownModel, match="'demo'; no model is registered; start a worker: millrace worker --model demo"
    ):
        client.submit("a", model="demo")
    assert client.models() == []


def test_a_model_that_goes_away_after_the_client_looked(client: Client, raw: redis.Redis, keys: QueueKeys) -> None:
    client.submit("a")
    raw.delete(keys.model)
    with pytest.raises(UnknownModel, match="'demo'"):
        client.submit("a")
    assert raw.xlen(keys.lanes["interactive"]) == 1


def test_jobs_that_are_not_there(client: Client) -> None:
    missing = client.get(new_job_id("demo"))
    for ask in (missing.state, missing.record, missing.cancel, missing.result, lambda: missing.result(timeout=0)):
        with pytest.raises(JobNotFound, match="time to live"):
            ask()
    for ask in (client.get, client.state, client.result, client.cancel, client.events):
        with pytest.raises(InvalidRequest, match="is not a job id"):
            ask("demo-1")


def test_results_are_plain_structs(redis_url: str) -> None:
    with FakeWorker(redis_url), Client(redis_url) as client:
        result = client.submit("hi").result(timeout=10)
    assert msgspec.json.decode(msgspec.json.encode(result))["choices"][0]["text"] == "HI"
