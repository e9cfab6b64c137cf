"""A repeated request makes one job, and a client that leaves ends what nobody else can ask for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
import redis

from fake_worker import FakeWorker
from gateway_server import GatewayServer
from millrace.gateway import GatewaySettings
from millrace_schemas import QueueKeys, Tokens

CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "hello"}]}


def until(condition: Callable[[], object], what: str = "") -> None:
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.02)


def test_one_key_makes_one_job(ai: openai.OpenAI, worker: FakeWorker) -> None:
    key = {"Idempotency-Key": "order-17"}
    first = ai.chat.completions.create(**CHAT, extra_headers=key)
    second = ai.chat.completions.create(**CHAT, extra_headers=key)
    assert (first.id, first.created) == (second.id, second.created)
    assert len(worker.taken) == 1
    assert ai.chat.completions.create(**CHAT, extra_headers={"Idempotency-Key": "order-18"}).id != first.id
    assert ai.chat.completions.create(**CHAT).id != first.id


def test_a_client_that_times_out_and_repeats_gets_the_one_job(
    gateway: GatewayServer, idle_worker: FakeWorker, raw: redis.Redis, keys: QueueKeys
) -> None:
    async def ask() -> str:
        limits: Any = {"base_url": f"{gateway.url}/v1", "api_key": "none", "timeout": 0.5, "max_retries": 8}
        async with openai.AsyncOpenAI(**limits) as ai:
            call = ai.chat.completions.create(**CHAT, extra_headers={"Idempotency-Key": "k"})
            asking = asyncio.create_task(call)
            await asyncio.sleep(1.5)
            assert not asking.done()
            idle_worker.release()
            return (await asking).id

    assert asyncio.run(ask()) == f"chatcmpl-{idle_worker.taken[0]}"
    assert len(idle_worker.taken) == 1
    assert raw.hget(keys.job(idle_worker.taken[0]), "cancel_requested") is None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_a_client_that_leaves_cancels_its_job(
    http: httpx2.Client, idle_worker: FakeWorker, raw: redis.Redis, keys: QueueKeys, stream: bool, path: str
) -> None:
    body = CHAT if path == "chat/completions" else {"model": "demo", "prompt": "hello"}
    with pytest.raises(httpx2.ReadTimeout):
        http.post(f"/v1/{path}", json={**body, "stream": stream}, timeout=0.2)
    until(lambda: idle_worker.taken, "no job was made")
    job = idle_worker.taken[0]
    until(lambda: raw.hget(keys.job(job), "cancel_requested") == b"1", "it was not cancelled")
    idle_worker.release()
    until(lambda: raw.hget(keys.job(job), "state") == b"cancelled")


def test_a_client_that_leaves_in_the_middle_of_a_stream_cancels_its_job(
    http: httpx2.Client, idle_worker: FakeWorker, raw: redis.Redis, keys: QueueKeys
) -> None:
    with http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        until(lambda: idle_worker.taken)
        job = idle_worker.taken[0]
        idle_worker.publish(job, Tokens(0, (1,), "first"))
        for line in answer.iter_lines():
            if "first" in line:
                assert raw.hget(keys.job(job), "cancel_requested") is None
                break
    until(lambda: raw.hget(keys.job(job), "cancel_requested") == b"1", "it was not cancelled")


@pytest.mark.parametrize("stream", [False, True])
def test_a_job_with_a_key_outlives_its_client(
    http: httpx2.Client, idle_worker: FakeWorker, raw: redis.Redis, keys: QueueKeys, stream: bool
) -> None:
    body, headers = {**CHAT, "stream": stream}, {"Idempotency-Key": "mine"}
    with pytest.raises(httpx2.ReadTimeout):
        http.post("/v1/chat/completions", json=body, headers=headers, timeout=0.2)
    until(lambda: idle_worker.taken)
    job = idle_worker.taken[0]
    # The one without a key shows that the gateway has seen both leave.
    with pytest.raises(httpx2.ReadTimeout):
        http.post("/v1/chat/completions", json=CHAT, timeout=0.2)
    until(lambda: any(raw.hget(name, "cancel_requested") for name in raw.scan_iter(keys.job("*"))))
    assert raw.hget(keys.job(job), "cancel_requested") is None
    idle_worker.release()
    until(lambda: raw.hget(keys.job(job), "state") == b"completed")
    assert "HELLO"[1:] in http.post("/v1/chat/completions", json=body, headers=headers).text


def test_the_longest_wait_for_an_answer(redis_url: str, idle_worker: FakeWorker, raw: redis.Redis) -> None:
    with GatewayServer(redis_url, GatewaySettings(answer_timeout=0.3)) as gateway:
        answer = httpx2.post(f"{gateway.url}/v1/chat/completions", json=CHAT)
    assert answer.status_code == 504
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"]["code"] == "result_timeout"
    # Taken by the worker or not yet: the mark is there in both cases.
    assert raw.hget(QueueKeys("demo").job(answer.headers["x-request-id"]), "cancel_requested") == b"1"


def test_a_job_that_somebody_cancels(http: httpx2.Client, raw: redis.Redis, keys: QueueKeys) -> None:
    async def run() -> httpx2.Response:
        async with httpx2.AsyncClient(base_url=http.base_url, timeout=20) as client:
            asking = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
            while not (found := list(raw.scan_iter(keys.job("*")))):
                await asyncio.sleep(0.02)
            await client.delete(f"/v1/jobs/{found[0].decode().rsplit(':', 1)[1]}")
            return await asking

    answer = asyncio.run(run())
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "cancelled")
    # OpenAI's clients repeat after a 409, which would undo the cancellation.
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("key", ["", "k" * 257])
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/chat/completions", "/v1/completions"])
def test_keys_have_a_length(http: httpx2.Client, path: str, key: str) -> None:
    answer = http.post(path, json={"model": "demo", "prompt": "a"}, headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")
