"""/v1/files and /v1/batches while storage or Redis is away: a 503 that says when to come back, nothing half done."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from bulk_parts import chat_line
from fake_worker import register
from faulty_s3 import FaultyS3
from gateway_server import GatewayServer
from millrace.bulk.local_storage import LocalStorage
from millrace.embedded import EmbeddedRedis
from millrace.gateway import GatewaySettings

DATA = (chat_line("a") + "\n").encode()


def client_of(gateway: GatewayServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def client(redis_url: str, faulty: FaultyS3) -> Iterator[openai.OpenAI]:
    register(redis_url)
    with (
        GatewayServer(redis_url, GatewaySettings(files="s3://answers/files")) as gateway,
        client_of(gateway) as client,
    ):
        yield client


def refused(do: Callable[[], Any], code: str) -> str:
    """The message of a 503 in OpenAI's shape."""
    with pytest.raises(openai.InternalServerError) as error:
        do()
    assert error.value.status_code == 503
    assert error.value.response.headers["retry-after"] == "5"
    body = error.value.response.json()["error"]
    assert (body["type"], body["code"]) == ("server_error", code)
    message: str = body["message"]
    return message


def test_storage_that_is_away(client: openai.OpenAI, faulty: FaultyS3) -> None:
    file = client.files.create(file=("in.jsonl", DATA), purpose="batch")
    faulty.fail("*", "/files/", "AccessDenied")
    for do in (
        lambda: client.files.create(file=("in.jsonl", DATA), purpose="batch"),
        lambda: client.files.content(file.id),
        lambda: client.files.delete(file.id),
    ):
        # Where the files are is nobody's business.
        assert "s3://" not in refused(do, "storage_unavailable")
    assert [found.id for found in client.files.list()] == [file.id]
    # What needs no storage goes on.
    made = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )  # fmt: skip
    assert client.batches.cancel(made.id).status == "cancelling"
    faulty.heal()
    assert client.files.content(file.id).content == DATA
    assert client.files.delete(file.id).deleted


def test_contents_that_are_gone(client: openai.OpenAI, faulty: FaultyS3) -> None:
    file = client.files.create(file=("in.jsonl", DATA), purpose="batch")
    faulty.fail("HEAD", file.id, "NoSuchKey")
    with pytest.raises(openai.NotFoundError) as error:
        client.files.content(file.id)
    assert error.value.code == "file_not_found"


def test_contents_that_break_off(client: openai.OpenAI, faulty: FaultyS3) -> None:
    """An answer that is not whole cannot be taken for one."""
    file = client.files.create(file=("in.jsonl", DATA), purpose="batch")
    faulty.fail("GET", file.id, "AccessDenied")
    with pytest.raises(openai.APIConnectionError):
        client.files.content(file.id)


def test_redis_that_is_away(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    with EmbeddedRedis(tmp_path / "redis", durable=True) as server:
        register(server.url)
        settings = GatewaySettings(files=f"file://{tmp_path}/files")
        with GatewayServer(server.url, settings, retry_for=0.2) as gateway, client_of(gateway) as client:
            file = client.files.create(file=("in.jsonl", DATA), purpose="batch")

            def make() -> openai.types.Batch:
                return client.batches.create(
                    input_file_id=file.id,
                    endpoint="/v1/chat/completions",
                    completion_window="24h",
                    extra_headers={"Idempotency-Key": "one"},
                )

            made = make()
            server.stop()
            before = sorted(path.name for path in (tmp_path / "files").iterdir())
            for do in (
                lambda: client.files.create(file=("in.jsonl", DATA), purpose="batch"),
                lambda: client.files.retrieve(file.id),
                lambda: client.files.content(file.id),
                lambda: client.files.list(),
                lambda: client.files.delete(file.id),
                make,
                lambda: client.batches.retrieve(made.id),
                lambda: client.batches.list(),
                lambda: client.batches.cancel(made.id),
            ):
                refused(do, "queue_unavailable")
            # An upload that nobody would know of is not kept.
            assert sorted(path.name for path in (tmp_path / "files").iterdir()) == before
            server.start()
            assert make().id == made.id
            assert [found.id for found in client.batches.list()] == [made.id]
            assert client.files.content(file.id).content == DATA


@pytest.mark.parametrize("metadata", [[], "", 0, {"a": 1}, {"a": {}}])
def test_metadata_that_is_none(client: openai.OpenAI, metadata: Any) -> None:
    file = client.files.create(file=("in.jsonl", DATA), purpose="batch")
    with pytest.raises(openai.BadRequestError) as error:
        client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            extra_body={"metadata": metadata},
        )
    assert error.value.param == "metadata"


def test_storage_that_is_slow_holds_up_nobody_else(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More uploads wait for it than the gateway has threads for all else."""
    uploads = min(32, (os.cpu_count() or 1) + 4)
    arrived, slow = threading.Semaphore(0), threading.Event()
    join = LocalStorage.join

    def joined(storage: LocalStorage, url: str, pieces: Iterator[bytes]) -> int:
        arrived.release()
        assert slow.wait(60)
        return join(storage, url, pieces)

    monkeypatch.setattr(LocalStorage, "join", joined)
    large = {"model": "nobody", "messages": [{"role": "user", "content": "x" * 400_000}]}
    settings = GatewaySettings(files=f"file://{tmp_path}")
    with (
        GatewayServer(redis_url, settings) as gateway,
        client_of(gateway) as client,
        ThreadPoolExecutor(uploads) as all_,
    ):
        try:
            sent = [all_.submit(client.files.create, file=("in", DATA), purpose="batch") for _ in range(uploads)]
            for _ in range(uploads):
                assert arrived.acquire(timeout=20)
            answer = httpx2.post(f"{gateway.url}/v1/chat/completions", json=large, timeout=10)
            assert answer.status_code == 404
        finally:
            slow.set()
        assert all(file.result().bytes == len(DATA) for file in sent)
