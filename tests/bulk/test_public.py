"""What a tenant is told of a batch, and what is for the operator only."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from bulk_parts import Batches, BulkThread, chat_line
from fake_worker import FakeWorker
from gateway_server import GatewayServer
from key_maker import KeyMaker
from millrace.bulk.public import public
from millrace.bulk.settings import BulkSettings
from millrace.bulk.store import View
from millrace.bulk.submitting import make_batch
from millrace.gateway import GatewaySettings
from millrace_schemas.batch import BatchError, BatchProgress


@pytest.mark.parametrize("code", ["not_found", "permission_denied", "storage_failed", "input_changed"])
def test_no_word_of_places(code: str) -> None:
    batch = make_batch("/secret/in.jsonl", "/secret", now=1.0)
    line = BatchError("url_mismatch", "The url is '/v1/embeddings'.", 3, "url")
    errors = (BatchError(code, "/secret/in.jsonl: no such file"), line)
    batch = type(batch)(**{**{name: getattr(batch, name) for name in batch.__struct_fields__}, "errors": errors})
    shown = public(View(batch, BatchProgress(), None, "s3://secret: 503", 0.0))
    assert "secret" not in f"{shown.batch.errors} {shown.problem}"
    assert (shown.batch.errors[0].code, shown.batch.errors[1]) == (code, line)
    assert public(View(batch, BatchProgress(), None, None, 0.0)).problem is None


def test_over_http(redis_url: str, batches: Batches, tmp_path: Path) -> None:
    """The file of a tenant is gone before it is looked through."""
    place = tmp_path / "secret-place"
    maker = KeyMaker(redis_url)
    key, operator = maker(tenant="acme"), maker(operator=True)
    settings = GatewaySettings(files=f"file://{place}", require_keys=True)
    with GatewayServer(redis_url, settings) as server, FakeWorker(redis_url):
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
            file = client.files.create(file=("in.jsonl", chat_line("a").encode()), purpose="batch")
            for found in place.iterdir():
                found.unlink()
            batch = client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            with BulkThread(redis_url, BulkSettings()):
                batches.ended(batch.id)
            told = [client.batches.retrieve(batch.id), *client.batches.list(limit=5).data]
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=operator, max_retries=0) as client:
            seen = client.batches.retrieve(batch.id)
    for one in told:
        assert one.status == "failed"
        assert one.errors.data[0].code == "not_found"
        assert "secret-place" not in one.to_json()
    assert "secret-place" in seen.to_json()
