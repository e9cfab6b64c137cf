"""Webhooks of batches, from their ends to a receiver: gateways, Redis and receivers are real."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import openai
import pytest
import redis
from typer.testing import CliRunner

from backends import until
from bulk_parts import Batches, BulkThread, chat_line, written
from fake_worker import FakeWorker, register
from gateway_server import GatewayServer
from millrace import InvalidRequest, cli
from millrace.bulk.announcing import announce
from millrace.bulk.files import FileStore
from millrace.bulk.settings import BulkSettings
from millrace.bulk.store import BatchStore, Owned
from millrace.bulk.submitting import make_batch
from millrace.bulk.whole import moved
from millrace.connection import Connection
from millrace.gateway import GatewaySettings
from millrace.gateway.webhook_addresses import Allowed
from millrace.gateway.webhook_settings import WebhookSettings
from millrace.webhooks.outbox import Outbox
from millrace_schemas import JobNotFound, QueueKeys
from millrace_schemas.batch import Batch, BatchEvent, BatchStatus, BulkFile
from millrace_schemas.keys import BULK_QUEUE, webhook_secret
from receiver import Receiver

T = TypeVar("T")
KEYS = QueueKeys(BULK_QUEUE)
QUICK = WebhookSettings(
    allowed=Allowed.of(["127.0.0.1"]), delays=(0.05, 0.05), jitter=0.0, timeout=5.0, lease=15.0, poll=0.5, grace=0.2
)


class Bulk:
    """What a bulk worker does at the end of a batch."""

    def __init__(self, url: str):
        self._url = url

    def do(self, what: Callable[[Connection], Awaitable[T]]) -> T:
        async def run() -> T:
            connection = Connection(self._url)
            try:
                return await what(connection)
            finally:
                await connection.close()

        return asyncio.run(run())

    def take(self, **fields: Any) -> Owned:
        async def begin(connection: Connection) -> Owned:
            store = BatchStore(connection)
            batch = make_batch("/nowhere/in.jsonl", "/nowhere", now=await store.now(), **fields)
            await store.create(batch)
            owned = await store.take(batch.id, 30.0)
            assert owned is not None
            return owned

        return self.do(begin)

    def announce(self, batch: Batch, status: BatchStatus) -> None:
        async def call(connection: Connection) -> None:
            await announce(connection, batch, status, await connection.now())

        self.do(call)

    def move(self, owned: Owned, *events: BatchEvent) -> None:
        async def call(connection: Connection) -> None:
            store = BatchStore(connection)
            for event in events:
                batch = moved(owned.batch, event, await store.now())
                await store.move(owned, batch, ended=event is events[-1])

        self.do(call)

    def end(self, owned: Owned, status: BatchStatus, *events: BatchEvent) -> None:
        self.announce(owned.batch, status)
        self.move(owned, *events)


@pytest.fixture
def bulk_worker(redis_url: str) -> Bulk:
    return Bulk(redis_url)


@pytest.fixture
def gateway(redis_url: str, tmp_path: Path) -> Iterator[GatewayServer]:
    register(redis_url)
    settings = GatewaySettings(files=f"file://{tmp_path}/files")
    with GatewayServer(redis_url, settings, webhooks=QUICK) as server:
        yield server


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as raw:
        yield raw


def secret(raw: redis.Redis, tenant: str = "") -> str:
    return raw.hget(webhook_secret(tenant), "current").decode()


def state(raw: redis.Redis, batch: Batch) -> str | None:
    found = raw.hget(KEYS.job(batch.id), "webhook_state")
    return None if found is None else found.decode()


@pytest.mark.parametrize(
    ("status", "events"),
    [
        (BatchStatus.COMPLETED, (BatchEvent.BEGIN, BatchEvent.FINALIZE, BatchEvent.COMPLETE)),
        (BatchStatus.EXPIRED, (BatchEvent.BEGIN, BatchEvent.FINALIZE, BatchEvent.EXPIRE)),
        (BatchStatus.CANCELLED, (BatchEvent.CANCEL, BatchEvent.CANCELLED)),
        (BatchStatus.FAILED, (BatchEvent.FAIL,)),
    ],
)
def test_every_end_is_told(
    bulk_worker: Bulk, gateway: GatewayServer, raw: redis.Redis, status: BatchStatus, events: tuple[BatchEvent, ...]
) -> None:
    with Receiver() as receiver:
        owned = bulk_worker.take(webhook=receiver.url, tenant="acme")
        bulk_worker.end(owned, status, *events)
        (call,) = receiver.wait()
        until(lambda: state(raw, owned.batch) == "delivered")
    with openai.OpenAI(base_url=gateway.url, api_key="none") as client:
        event = client.webhooks.unwrap(call.body, call.headers, secret=secret(raw, "acme"))
    assert (event.type, event.data.id, event.object) == (f"batch.{status}", owned.batch.id, "event")
    ended = bulk_worker.do(lambda connection: BatchStore(connection).view(owned.batch.id)).batch
    assert event.created_at == int(getattr(ended, f"{status}_at"))
    assert call.headers["webhook-id"] == event.id == f"evt_{owned.batch.id[-26:]}"


def test_no_end_no_webhook(bulk_worker: Bulk, gateway: GatewayServer, raw: redis.Redis) -> None:
    """A worker died between the two; its successor finds that the batch was cancelled meanwhile."""
    with Receiver() as receiver:
        owned = bulk_worker.take(webhook=receiver.url)
        bulk_worker.announce(owned.batch, BatchStatus.COMPLETED)
        # A gateway has looked, and gave it back.
        until(lambda: state(raw, owned.batch) == "pending")
        bulk_worker.move(owned, BatchEvent.CANCEL)
        assert not receiver.calls
        bulk_worker.end(owned, BatchStatus.CANCELLED, BatchEvent.CANCELLED)
        (call,) = receiver.wait()
        until(lambda: state(raw, owned.batch) == "delivered")
    assert call.event(secret(raw)).type == "batch.cancelled"
    assert raw.hget(KEYS.job(owned.batch.id), "webhook_attempts") == b"1"


def test_announced_twice_told_once(bulk_worker: Bulk, gateway: GatewayServer, raw: redis.Redis) -> None:
    with Receiver(500, 204) as receiver:
        owned = bulk_worker.take(webhook=receiver.url)
        bulk_worker.announce(owned.batch, BatchStatus.FAILED)
        bulk_worker.end(owned, BatchStatus.FAILED, BatchEvent.FAIL)
        first, second = receiver.wait(2)
        until(lambda: state(raw, owned.batch) == "delivered")
        # As by a worker that had slept.
        bulk_worker.announce(owned.batch, BatchStatus.FAILED)
        assert (raw.zcard(KEYS.webhooks), state(raw, owned.batch)) == (0, "delivered")
        assert len(receiver.calls) == 2
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


def test_batches_without_a_webhook_tell_nobody(bulk_worker: Bulk, raw: redis.Redis) -> None:
    owned = bulk_worker.take()
    bulk_worker.end(owned, BatchStatus.FAILED, BatchEvent.FAIL)
    assert not raw.exists(KEYS.webhooks, KEYS.job(owned.batch.id))


def test_over_http(bulk_worker: Bulk, gateway: GatewayServer) -> None:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        file = client.files.create(file=("in.jsonl", b"x\n"), purpose="batch")

        def make(webhook: Any) -> str:
            return client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                extra_body={"webhook": webhook},
            ).id

        batch_id = make("https://shop.example/hooks")
        view = bulk_worker.do(lambda connection: BatchStore(connection).view(batch_id))
        assert view.batch.webhook == "https://shop.example/hooks"
        for wrong in ("ftp://shop.example", "", 5, ["https://shop.example"]):
            with pytest.raises(openai.BadRequestError) as refused:
                make(wrong)
            assert refused.value.param == "webhook"


def test_commands(
    bulk_worker: Bulk, raw: redis.Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_REDIS_URL", redis_url)
    monkeypatch.setenv("COLUMNS", "200")
    run = CliRunner().invoke
    source = written(str(tmp_path / "in.jsonl"), [chat_line("a")])
    batch_id = run(cli.app, ["batch", "submit", source, "--webhook", "https://shop.example/hooks"]).stdout.strip()
    batch = bulk_worker.do(lambda connection: BatchStore(connection).view(batch_id)).batch
    assert batch.webhook == "https://shop.example/hooks"
    assert isinstance(
        run(cli.app, ["batch", "submit", source, "--webhook", "mailto:shop@shop.example"]).exception, InvalidRequest
    )
    assert isinstance(run(cli.app, ["webhooks", "retry", batch_id]).exception, JobNotFound)
    bulk_worker.announce(batch, BatchStatus.COMPLETED)
    listed = run(cli.app, ["webhooks", "list"]).stdout
    assert batch_id in listed
    assert "shop.example" in listed
    raw.zadd(KEYS.webhooks, {batch_id: 4e9})
    assert run(cli.app, ["webhooks", "retry", batch_id]).exit_code == 0
    (entry,) = bulk_worker.do(lambda connection: Outbox(connection).pending(BULK_QUEUE, 10))
    assert entry.due < 4e9


def test_a_bulk_worker_announces(redis_url: str, gateway: GatewayServer, batches: Batches, tmp_path: Path) -> None:
    source = written(str(tmp_path / "in.jsonl"), [chat_line("a")])
    with Receiver() as receiver, FakeWorker(redis_url), BulkThread(redis_url, BulkSettings(flush_seconds=0.1)):
        batch_id = batches.make(source, str(tmp_path / "out"), webhook=receiver.url, output_expires_after=7200)
        batch = batches.ended(batch_id).batch
        receiver.wait()
    assert [call.body.count(b"batch.completed") for call in receiver.calls] == [1]
    (file,) = [file for file in files_of(redis_url) if file.id == batch.output_file_id]
    assert file.expires_at == file.created_at + 7200


def files_of(redis_url: str) -> list[BulkFile]:
    async def read() -> list[BulkFile]:
        connection = Connection(redis_url)
        try:
            return await FileStore(connection).page()
        finally:
            await connection.close()

    return asyncio.run(read())
