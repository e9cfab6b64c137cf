"""GET /v1/batches/{id}/events: what a reader gets, when it stops, who may read, and what an outage does to it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis

from batch_maker import moved, new_batch, put
from bulk_parts import Batches, BulkThread, chat_line, written
from fake_worker import FakeWorker
from gateway_process import running_gateway
from gateway_server import GatewayServer
from key_maker import KeyMaker
from millrace.embedded import EmbeddedRedis
from millrace.gateway import GatewaySettings
from millrace_schemas.batch import BatchStatus
from millrace_schemas.keys import batch_key

ID = "batch_00112233445566778899aabbccddeeff"
PATH = f"/v1/batches/{ID}/events"
QUICK = GatewaySettings(keep_alive=0.2)


@pytest.fixture
def http(redis_url: str) -> Iterator[httpx2.Client]:
    with GatewayServer(redis_url, QUICK) as server, httpx2.Client(base_url=server.url, timeout=20) as http:
        yield http


class Events:
    """The events of one stream, one after the other; comments are counted."""

    def __init__(self, answer: httpx2.Response):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        self._lines = answer.iter_lines()
        self.comments = 0
        self.ids: list[str] = []

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        fields: dict[str, str] = {}
        for line in self._lines:
            name, _, value = line.partition(": ")
            if line and not name:
                self.comments += 1
            elif line:
                fields[name] = value
            elif fields:
                self.ids.append(fields.get("id", ""))
                yield fields.get("event", ""), json.loads(fields["data"])
                fields = {}


def test_a_batch_of_a_real_gateway_from_its_begin_to_its_end(
    redis_url: str, batches: Batches, bulk: BulkThread, tmp_path: Path
) -> None:
    lines = [chat_line(f"r{n}", "fail" if n % 4 == 0 else "hello") for n in range(40)]
    with (
        FakeWorker(redis_url, hold=True) as worker,
        running_gateway(redis_url, tmp_path / "log") as http,
    ):
        batch_id = batches.make(written(f"{tmp_path}/in.jsonl", lines), str(tmp_path))
        found = []
        with http.stream("GET", f"/v1/batches/{batch_id}/events") as answer:
            for name, data in Events(answer):
                found.append((name, data))
                assert data["id"] == data["progress"]["id"] == batch_id
                if data["status"] == "in_progress":
                    worker.release()
    names = [name for name, _ in found]
    assert names == ["batch.progress"] * (len(names) - 1) + ["batch.completed"]
    assert len(names) > 1
    assert found[-1][1]["request_counts"] == {"total": 40, "completed": 30, "failed": 10}
    assert found[-1][1]["progress"]["share"] == 1.0
    ended = [data["progress"]["completed"] + data["progress"]["failed"] for _, data in found]
    assert ended == sorted(ended)


def test_each_change_is_an_event_and_signs_of_life_are_none(http: httpx2.Client, raw: redis.Redis) -> None:
    batch = put(raw, new_batch(ID), checked="0.25")
    with http.stream("GET", PATH) as answer:
        events = Events(answer)
        changes = iter(events)
        name, data = next(changes)
        assert (name, data["status"], data["progress"]["checked"]) == ("batch.progress", "validating", 0.25)
        batch = moved(raw, batch, BatchStatus.IN_PROGRESS, total=10, problem="the disk is full")
        name, data = next(changes)
        assert (name, data["status"], data["problem"]) == ("batch.progress", "in_progress", "the disk is full")
        while events.comments < 2:
            raw.hincrby(batch_key(ID), "completed", 1)
            next(changes)
        raw.hdel(batch_key(ID), "problem")
        assert next(changes)[1]["problem"] is None
        raw.hset(batch_key(ID), "cancel", "1")
        assert next(changes)[1]["status"] == "cancelling"
        moved(raw, batch, BatchStatus.CANCELLED)
        assert [name for name, _ in changes] == ["batch.cancelled"]
    assert len(set(events.ids)) == len(events.ids)


def test_a_reader_that_comes_back(http: httpx2.Client, raw: redis.Redis) -> None:
    def stream(seen: str = "") -> Any:
        return http.stream("GET", PATH, headers={"last-event-id": seen} if seen else {})

    batch = put(raw, new_batch(ID, status=BatchStatus.IN_PROGRESS, total=10), completed=1)
    with stream() as answer:
        first = Events(answer)
        next(iter(first))
    moved(raw, batch, BatchStatus.IN_PROGRESS, completed=2)
    with stream(first.ids[0]) as answer:
        # As it is now, whatever came between.
        second = Events(answer)
        assert next(iter(second))[1]["request_counts"]["completed"] == 2
    with stream(second.ids[0]) as answer:
        # Not again what was seen.
        third = Events(answer)
        moved(raw, batch, BatchStatus.IN_PROGRESS, completed=3)
        assert next(iter(third))[1]["request_counts"]["completed"] == 3
    moved(raw, batch, BatchStatus.COMPLETED, completed=10)
    with stream(third.ids[0]) as answer:
        last = Events(answer)
        assert [name for name, _ in last] == ["batch.completed"]
    # A browser asks for ever, but for this.
    assert http.get(PATH, headers={"last-event-id": last.ids[0]}).status_code == 204


def test_it_is_a_stream_among_others(redis_url: str, raw: redis.Redis) -> None:
    put(raw, new_batch(ID))
    with (
        GatewayServer(redis_url, GatewaySettings(max_streams=1)) as server,
        httpx2.Client(base_url=server.url, timeout=20) as http,
        http.stream("GET", PATH) as answer,
    ):
        changes = iter(Events(answer))
        next(changes)
        assert "millrace_gateway_streams 1" in http.get("/metrics").text
        second = http.get(PATH)
        assert (second.status_code, second.json()["error"]["code"]) == (503, "too_many_streams")


def test_who_may_read(redis_url: str, http: httpx2.Client, raw: redis.Redis) -> None:
    maker = KeyMaker(redis_url)
    put(raw, new_batch(ID, tenant="acme", status=BatchStatus.COMPLETED))
    for fields, status in (({"tenant": "acme"}, 200), ({"tenant": "other"}, 404), ({"operator": True}, 200)):
        answer = http.get(PATH, headers=maker.headers(**fields))
        assert answer.status_code == status, fields
        if status == 404:
            assert answer.json()["error"]["code"] == "batch_not_found"
    assert http.get("/v1/batches/batch_none/events").json()["error"]["code"] == "batch_not_found"
    with (
        GatewayServer(redis_url, GatewaySettings(require_keys=True)) as server,
        httpx2.Client(base_url=server.url) as closed,
    ):
        assert closed.get(PATH).status_code == 401


def test_through_an_outage_and_after_a_loss() -> None:
    with EmbeddedRedis(durable=True) as server, GatewayServer(server.url, QUICK, retry_for=0.2) as gateway:
        with redis.Redis.from_url(server.url) as raw:
            batch = put(raw, new_batch(ID, status=BatchStatus.IN_PROGRESS, total=10))
        with httpx2.Client(base_url=gateway.url, timeout=20) as http, http.stream("GET", PATH) as answer:
            events = Events(answer)
            changes = iter(events)
            next(changes)
            server.stop()
            # For longer than there is between two looks of a stream that has just had an event.
            time.sleep(1.5)
            assert http.get(PATH).json()["error"]["code"] == "queue_unavailable"
            server.start()
            with redis.Redis.from_url(server.url) as raw:
                moved(raw, batch, BatchStatus.IN_PROGRESS, completed=1)
                assert next(changes)[1]["request_counts"]["completed"] == 1
                raw.delete(batch_key(ID))
            assert next(changes)[1]["error"]["code"] == "batch_not_found"
            assert not list(changes)
