"""A batch belongs to the trace of whoever made it, and so do the jobs of its lines."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from bulk_parts import Batches, chat_line, written
from fake_worker import register
from gateway_server import GatewayServer
from millrace import AsyncClient
from millrace.bulk.jobs import BatchJobs
from millrace.bulk.lines import RawLine
from millrace.bulk.rows import CHAT, Row
from millrace.connection import Connection
from millrace.gateway import GatewaySettings
from millrace.tracing import continued
from millrace_schemas.batch import Batch

GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_over_http_from_the_header(redis_url: str, batches: Batches, tmp_path: Path) -> None:
    settings = GatewaySettings(files=f"file://{tmp_path}/files")
    found = {}
    with GatewayServer(redis_url, settings) as server, httpx2.Client(base_url=server.url, timeout=20) as http:
        data = {"file": ("in.jsonl", (chat_line("a") + "\n").encode())}
        file_id = http.post("/v1/files", files=data, data={"purpose": "batch"}).json()["id"]
        body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
        for given in (GIVEN, "00-nonsense", None):
            headers = {} if given is None else {"traceparent": given}
            found[given] = http.post("/v1/batches", json=body, headers=headers).json()["id"]
    assert {given: batches.view(name).batch.traceparent for given, name in found.items()} == {
        GIVEN: GIVEN, "00-nonsense": None, None: None,
    }  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), [(GIVEN, GIVEN), ("nonsense", None)])
def test_the_command_takes_it_from_its_caller(
    redis_url: str, batches: Batches, tmp_path: Path, given: str, expected: str | None
) -> None:
    source = written(str(tmp_path / "in.jsonl"), [chat_line("a")])
    command = [sys.executable, "-m", "millrace", "batch", "submit", source, "--output", str(tmp_path)]
    environ = {**os.environ, "MILLRACE_REDIS_URL": redis_url, "TRACEPARENT": given}
    run = subprocess.run(command, capture_output=True, text=True, env=environ, check=True)
    assert batches.view(run.stdout.strip()).batch.traceparent == expected


def test_an_active_span_comes_first(batches: Batches, tmp_path: Path) -> None:
    context = SpanContext(int("1" * 32, 16), int("2" * 16, 16), is_remote=False, trace_flags=TraceFlags(0))
    with continued(GIVEN), use_span(NonRecordingSpan(context)):
        name = batches.make(str(tmp_path / "in.jsonl"), str(tmp_path))
    assert batches.view(name).batch.traceparent == "00-" + "1" * 32 + "-" + "2" * 16 + "-00"


def test_jobs_take_it_along(redis_url: str, batches: Batches, tmp_path: Path) -> None:
    register(redis_url)
    with continued(GIVEN):
        view = batches.view(batches.make(str(tmp_path / "in.jsonl"), str(tmp_path), model="demo"))

    async def prepare(batch: Batch) -> str | None:
        connection = Connection(redis_url)
        async with AsyncClient(redis_url) as client:
            jobs = BatchJobs(client, connection, batch)
            body = {"model": "demo", "messages": [{"role": "user", "content": "hello"}]}
            row = Row(line=RawLine(number=1, offset=0, length=2, data=b"{}"), custom_id="a", url=CHAT, body=body)
            with continued(batch.traceparent):
                submission = await jobs.prepare(row, jobs.id(1))
        await connection.close()
        return submission.request.traceparent

    assert asyncio.run(prepare(view.batch)) == GIVEN
