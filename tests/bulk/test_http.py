"""/v1/files and /v1/batches through OpenAI's own client, a real gateway and a bulk worker."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import msgspec
import openai
import pytest
import redis
from openai.types import Batch

from bulk_parts import Batches, BulkThread, chat_line
from fake_worker import FakeWorker, register
from gateway_server import GatewayServer
from key_maker import KeyMaker
from millrace.bulk.described import describe
from millrace.gateway import GatewaySettings
from millrace_schemas.batch import BatchStatus


@pytest.fixture
def gateway(redis_url: str, tmp_path: Path) -> Iterator[GatewayServer]:
    register(redis_url)
    settings = GatewaySettings(files=f"file://{tmp_path}/files", max_file_bytes=200_000)
    with GatewayServer(redis_url, settings) as server:
        yield server


@pytest.fixture
def client(gateway: GatewayServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ended(client: openai.OpenAI, batch_id: str) -> Batch:
    limit = time.monotonic() + 30
    while (batch := client.batches.retrieve(batch_id)).status not in ("completed", "failed", "cancelled", "expired"):
        assert time.monotonic() < limit, batch
        time.sleep(0.05)
    return batch


def upload(client: openai.OpenAI, *lines: str) -> str:
    data = "".join(line + "\n" for line in lines).encode()
    return client.files.create(file=("requests.jsonl", data), purpose="batch").id


def test_a_batch_end_to_end(redis_url: str, client: openai.OpenAI, bulk: BulkThread) -> None:
    file_id = upload(client, chat_line("a", "hello"), chat_line("b", "fail"), chat_line("c", temperature=-1))
    with FakeWorker(redis_url):
        batch = client.batches.create(
            input_file_id=file_id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"order": "7"},
        )
        assert batch.metadata == {"order": "7"}
        batch = ended(client, batch.id)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (3, 1, 2)
    assert batch.usage is not None
    assert batch.usage.output_tokens == len("HELLO")
    assert batch.output_file_id is not None
    assert batch.error_file_id is not None
    assert '"HELLO"' in client.files.content(batch.output_file_id).text
    assert len(client.files.content(batch.error_file_id).text.splitlines()) == 2
    assert [found.id for found in client.batches.list()] == [batch.id]


def test_a_batch_that_fails_validation(redis_url: str, client: openai.OpenAI, bulk: BulkThread) -> None:
    with FakeWorker(redis_url):
        made = client.batches.create(
            input_file_id=upload(client, chat_line("a"), "{"),
            endpoint="/v1/chat/completions",
            completion_window="24h",
        )
        batch = ended(client, made.id)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(error.code, error.line) for error in batch.errors.data] == [("invalid_json_line", 2)]


def test_a_batch_that_is_cancelled(redis_url: str, client: openai.OpenAI, bulk: BulkThread) -> None:
    with FakeWorker(redis_url, hold=True) as worker:
        made = client.batches.create(
            input_file_id=upload(client, *(chat_line(f"r{n}") for n in range(200))),
            endpoint="/v1/chat/completions",
            completion_window="24h",
        )
        while not worker.taken:
            time.sleep(0.02)
        assert client.batches.cancel(made.id).status == "cancelling"
        with redis.Redis.from_url(redis_url) as raw:
            while not raw.hget(worker.keys.job(worker.taken[0]), "cancel_requested"):
                time.sleep(0.02)
        worker.release()
        batch = ended(client, made.id)
    assert batch.status == "cancelled"
    assert batch.request_counts is not None
    assert batch.request_counts.completed + batch.request_counts.failed == 200


def test_a_batch_that_expires(redis_url: str, client: openai.OpenAI, bulk: BulkThread) -> None:
    with FakeWorker(redis_url, hold=True) as worker:
        made = client.batches.create(
            input_file_id=upload(client, *(chat_line(f"r{n}") for n in range(200))),
            endpoint="/v1/chat/completions",
            completion_window="2s",
        )
        time.sleep(2.5)
        worker.release()
        batch = ended(client, made.id)
    assert batch.status == "expired"
    assert batch.expired_at is not None
    assert batch.error_file_id is not None
    lines = [json.loads(line) for line in client.files.content(batch.error_file_id).text.splitlines()]
    assert {line["error"]["code"] for line in lines} == {"batch_expired"}
    answered = 0 if batch.output_file_id is None else len(client.files.content(batch.output_file_id).text.splitlines())
    assert answered + len(lines) == 200


def test_files(client: openai.OpenAI, gateway: GatewayServer) -> None:
    first, second = upload(client, "one"), upload(client, "two")
    assert {found.id for found in client.files.list()} == {first, second}
    assert [found.id for found in client.files.list(order="asc", limit=1)] == [first, second]
    assert client.files.content(first).content == b"one\n"
    found = client.files.retrieve(second)
    assert (found.filename, found.bytes, found.purpose) == ("requests.jsonl", 4, "batch")
    assert client.files.delete(second).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(second)
    with pytest.raises(openai.NotFoundError):
        client.batches.create(input_file_id=second, endpoint="/v1/chat/completions", completion_window="24h")


def test_what_is_refused(client: openai.OpenAI, gateway: GatewayServer) -> None:
    with pytest.raises(openai.APIStatusError) as long:
        client.files.create(file=b"x" * 300_000, purpose="batch")
    assert long.value.status_code == 413
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=b"x", purpose="vision")
    with httpx2.Client(base_url=gateway.url) as http:
        assert http.post("/v1/files", json={}).status_code == 415
        assert http.post("/v1/files", files={"other": b"x"}).json()["error"]["param"] == "file"
        broken = http.post("/v1/files", content=b"junk", headers={"content-type": "multipart/form-data; boundary=x"})
        assert broken.status_code == 400
        assert http.get("/v1/batches?limit=0").json()["error"]["param"] == "limit"
        assert http.get("/v1/batches/none").json()["error"]["code"] == "batch_not_found"


def test_tenants_see_their_own(redis_url: str, gateway: GatewayServer) -> None:
    maker = KeyMaker(redis_url)
    keys = [maker(tenant=tenant) for tenant in ("acme", "other")]
    acme, other = (openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) for key in keys)
    with acme, other:
        file_id = upload(acme, chat_line("a"))
        made = acme.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")
        assert [found.id for found in acme.batches.list()] == [made.id]
        assert not list(other.batches.list())
        assert not list(other.files.list())
        for look in (
            lambda: other.files.content(file_id),
            lambda: other.files.delete(file_id),
            lambda: other.batches.retrieve(made.id),
            lambda: other.batches.cancel(made.id),
        ):
            with pytest.raises(openai.NotFoundError):
                look()


def test_a_repeat_is_answered_when_its_file_is_gone(client: openai.OpenAI) -> None:
    file_id = upload(client, chat_line("a"))

    def create() -> Batch:
        return client.batches.create(
            input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h",
            extra_headers={"Idempotency-Key": "one"},
        )  # fmt: skip

    made = create()
    client.files.delete(file_id)
    assert create().id == made.id


def test_a_batch_that_is_about_to_end_is_not_cancelled(batches: Batches) -> None:
    """Its lines have their answers already."""
    batch_id = batches.make("/nowhere/in.jsonl", "/nowhere")
    batches.do(lambda store: store.cancel(batch_id))
    view = batches.view(batch_id)
    assert describe(view)["cancelling_at"] is not None
    ending = replace(view, batch=msgspec.structs.replace(view.batch, status=BatchStatus.FINALIZING))
    assert (describe(ending)["status"], describe(ending)["cancelling_at"]) == ("finalizing", None)
