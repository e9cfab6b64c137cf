"""Whole batches through a real bulk worker: every line ends once, in the output or in the error file."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from bulk_parts import Batches, BulkProcess, BulkThread, chat_line, outcome, written
from fake_worker import FakeWorker
from millrace.bulk.settings import BulkSettings
from millrace.bulk.storage import storage_of
from millrace_schemas import QueueKeys, Request, decode
from millrace_schemas.batch import BatchStatus, PromptColumn
from servers import S3Server


def codes(view: Any) -> list[tuple[str, int | None]]:
    return [(error.code, error.line) for error in view.batch.errors]


def test_a_file_is_worked_off(redis_url: str, batches: Batches, bulk: BulkThread, tmp_path: Path) -> None:
    lines = [chat_line(f"r{n}", f"fail {n}" if n % 10 == 0 else f"hello {n}") for n in range(1, 701)]
    lines[4] = chat_line("r5", "hello", temperature=-1)
    lines[5] = chat_line("r6", "hello", stream=True)
    source = written(str(tmp_path / "in.jsonl"), lines)
    with FakeWorker(redis_url):
        view = batches.ended(batches.make(source, str(tmp_path / "out")))
    assert view.batch.status is BatchStatus.COMPLETED, view
    output, errors = outcome(view)
    assert set(output) | set(errors) == {f"r{n}" for n in range(1, 701)}
    assert set(errors) == {f"r{n}" for n in range(10, 701, 10)} | {"r5", "r6"}
    answer = output["r7"]
    assert answer["error"] is None
    assert answer["response"]["status_code"] == 200
    assert answer["response"]["body"]["choices"][0]["message"]["content"] == "HELLO 7"
    assert errors["r5"]["response"]["status_code"] == 400
    assert errors["r5"]["response"]["body"]["error"]["param"] == "temperature"
    assert errors["r6"]["response"]["body"]["error"]["param"] == "stream"
    assert errors["r10"]["response"]["status_code"] == 500
    assert view.batch.total == 700
    # No pieces are left, neither of files nor of jobs.
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{view.batch.id}_errors.jsonl",
        f"{view.batch.id}_output.jsonl",
    ]
    with redis.Redis.from_url(redis_url) as raw:
        assert not raw.keys(QueueKeys("demo").job("*"))


@pytest.mark.parametrize("url", ["/v1/completions", "/v1/responses"])
def test_other_endpoints(redis_url: str, batches: Batches, bulk: BulkThread, tmp_path: Path, url: str) -> None:
    body = {"model": "demo", ("prompt" if url == "/v1/completions" else "input"): "hello"}
    line = json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": body})
    with FakeWorker(redis_url):
        view = batches.ended(batches.make(written(str(tmp_path / "in.jsonl"), [line]), str(tmp_path)))
    output, _ = outcome(view)
    body = output["a"]["response"]["body"]
    text = body["choices"][0]["text"] if url == "/v1/completions" else body["output"][0]["content"][0]["text"]
    assert text == "HELLO"


def test_lines_may_ask_for_penalties_and_log_probabilities(
    redis_url: str, batches: Batches, bulk: BulkThread, tmp_path: Path
) -> None:
    penalties = {"presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.2}
    penalties["logit_bias"] = {"5": -1}
    lines = [
        chat_line("a", "hi", logprobs=True, top_logprobs=2, **penalties),
        chat_line("b", "hi", **penalties),
        chat_line("c", "hi", top_logprobs=2),
        chat_line("d", "hi", presence_penalty=3),
    ]
    with FakeWorker(redis_url):
        view = batches.ended(batches.make(written(str(tmp_path / "in.jsonl"), lines), str(tmp_path)))
    output, errors = outcome(view)
    found = {name: line["response"]["body"]["choices"][0]["logprobs"] for name, line in output.items()}
    assert [(token["token"], len(token["top_logprobs"])) for token in found["a"]["content"]] == [("H", 2), ("I", 2)]
    assert found["b"] is None
    params = {name: line["response"]["body"]["error"]["param"] for name, line in errors.items()}
    assert params == {"c": "top_logprobs", "d": "presence_penalty"}


def test_lines_may_pin_what_they_begin_with(redis_url: str, batches: Batches, bulk: BulkThread, tmp_path: Path) -> None:
    lines = [chat_line("a", "hi", cache="pin", cache_ttl=90), chat_line("b", "hi", cache="pin", cache_ttl=5)]
    with redis.Redis.from_url(redis_url) as raw, FakeWorker(redis_url, hold=True) as worker:
        batch_id = batches.make(written(str(tmp_path / "in.jsonl"), lines), str(tmp_path))
        limit = time.monotonic() + 20
        while not worker.taken:
            assert time.monotonic() < limit
            time.sleep(0.02)
        request = decode(raw.hget(worker.keys.job(worker.taken[0]), "request"), Request)
        worker.release()
        _, errors = outcome(batches.ended(batch_id))
    assert (request.cache, request.cache_ttl) == ("pin", 90.0)
    assert errors["b"]["response"]["body"]["error"]["param"] == "cache_ttl"


@pytest.mark.parametrize("name", ["background", "webhook"])
def test_what_means_nothing_in_a_line(
    redis_url: str, batches: Batches, bulk: BulkThread, tmp_path: Path, name: str
) -> None:
    """Rather than being dropped without a word."""
    body = {"model": "demo", "input": "hello", name: True if name == "background" else "https://example.com/hook"}
    line = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": body})
    with FakeWorker(redis_url):
        view = batches.ended(batches.make(written(str(tmp_path / "in.jsonl"), [line]), str(tmp_path)))
    _, errors = outcome(view)
    assert errors["a"]["response"]["status_code"] == 400
    assert errors["a"]["response"]["body"]["error"]["param"] == name


def test_files_in_s3(redis_url: str, batches: Batches, s3_env: S3Server, tmp_path: Path) -> None:
    data = "".join(chat_line(f"r{n}") + "\n" for n in range(300)).encode()
    # Not in its directory: the server remembers for a while what is there.
    storage_of("s3://answers").write("s3://answers/in.jsonl", data)
    with BulkThread(redis_url, BulkSettings()), FakeWorker(redis_url):
        view = batches.ended(batches.make("s3://answers/in.jsonl", "s3://answers/out"))
    assert view.batch.status is BatchStatus.COMPLETED, view
    output, errors = outcome(view)
    assert (len(output), len(errors)) == (300, 0)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_tables(redis_url: str, batches: Batches, bulk: BulkThread, tmp_path: Path, kind: str) -> None:
    texts = ["one", 'two, "quoted"', "three\nlines\n\nlong", "four"]
    source = tmp_path / f"in.{kind}"
    if kind == "csv":
        rows = "".join('{},"{}"\r\n'.format(n, text.replace('"', '""')) for n, text in enumerate(texts))
        source.write_bytes(b"\xef\xbb\xbf" + f"id,text\r\n{rows}".encode())
    else:
        written(str(source), (json.dumps({"id": n, "text": text}) for n, text in enumerate(texts)))
    columns = PromptColumn(column="text", id_column="id", system="be brief", body={"max_tokens": 5})
    with FakeWorker(redis_url):
        view = batches.ended(batches.make(str(source), str(tmp_path / "out"), model="demo", rows=columns))
    assert view.batch.status is BatchStatus.COMPLETED, view
    output, _ = outcome(view)
    found = {name: line["response"]["body"]["choices"][0]["message"]["content"] for name, line in output.items()}
    assert found == {str(n): text.upper() for n, text in enumerate(texts)}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], [("empty_file", None)]),
        (["", "  "], [("empty_file", None)]),
        ([chat_line("a"), "{broken", chat_line("b"), "[1]"], [("invalid_json_line", 2), ("invalid_request", 4)]),
        ([chat_line("a"), chat_line("b"), chat_line("a")], [("duplicate_custom_id", 3)]),
        (['{"url": "/v1/completions", "body": {"model": "demo"}}'], [("missing_custom_id", 1)]),
        (['{"custom_id": "a", "url": "/v1/completions"}'], [("missing_required_parameter", 1)]),
        (['{"custom_id": "a", "url": "/v1/completions", "body": {}}'], [("missing_required_parameter", 1)]),
        (['{"custom_id": "a", "url": "/v1/embeddings", "body": {"model": "demo"}}'], [("invalid_url", 1)]),
        ([chat_line("a"), chat_line("b", model="other")], [("model_mismatch", 2)]),
        ([chat_line("a", model="other")], [("model_not_found", 1)]),
        ([chat_line("a"), "x" * (17 * 1024 * 1024), chat_line("b")], [("line_too_long", 2)]),
    ],
)
def test_what_is_wrong_with_a_file(
    redis_url: str, batches: Batches, bulk: BulkThread, tmp_path: Path, lines: list[str], expected: list[Any]
) -> None:
    with FakeWorker(redis_url):
        view = batches.ended(batches.make(written(str(tmp_path / "in.jsonl"), lines), str(tmp_path / "out")))
    assert view.batch.status is BatchStatus.FAILED
    assert codes(view) == expected


def test_places_that_cannot_be_used(redis_url: str, batches: Batches, s3_env: S3Server, tmp_path: Path) -> None:
    source = written(str(tmp_path / "in.jsonl"), [chat_line("a")])
    with BulkThread(redis_url, BulkSettings()), FakeWorker(redis_url):
        ids = [
            batches.make(str(tmp_path / "no.jsonl"), str(tmp_path)),
            batches.make("s3://nowhere/in.jsonl", str(tmp_path)),
            batches.make(source, source),
        ]
        found = [codes(batches.ended(batch_id)) for batch_id in ids]
    assert found == [[("not_found", None)]] * 3


def test_an_endpoint_that_is_not_that_of_the_lines(
    redis_url: str, batches: Batches, bulk: BulkThread, tmp_path: Path
) -> None:
    source = written(str(tmp_path / "in.jsonl"), [chat_line("a")])
    with FakeWorker(redis_url):
        view = batches.ended(batches.make(source, str(tmp_path), endpoint="/v1/completions"))
    assert codes(view) == [("url_mismatch", 1)]


def test_a_cancelled_batch_keeps_what_it_has(
    redis_url: str, batches: Batches, bulk: BulkThread, tmp_path: Path
) -> None:
    source = written(str(tmp_path / "in.jsonl"), [chat_line(f"r{n}") for n in range(3000)])
    with FakeWorker(redis_url, hold=True) as worker:
        batch_id = batches.make(source, str(tmp_path / "out"))
        while not worker.taken:
            time.sleep(0.02)
        assert batches.do(lambda store: store.cancel(batch_id))
        worker.release()
        view = batches.ended(batch_id)
    assert view.batch.status is BatchStatus.CANCELLED
    output, errors = outcome(view)
    assert len(output) + len(errors) == 3000
    assert {line["error"]["code"] for line in errors.values()} == {"batch_cancelled"}
    assert not batches.do(lambda store: store.cancel(batch_id))


def test_an_expired_batch(redis_url: str, batches: Batches, bulk: BulkThread, tmp_path: Path) -> None:
    source = written(str(tmp_path / "in.jsonl"), [chat_line(f"r{n}") for n in range(300)])
    with FakeWorker(redis_url, hold=True) as worker:
        batch_id = batches.make(source, str(tmp_path / "out"), window="2s")
        # Longer than the window, and than workers that look at deadlines would need.
        time.sleep(2.5)
        worker.release()
        view = batches.ended(batch_id)
    assert view.batch.status is BatchStatus.EXPIRED
    output, errors = outcome(view)
    assert len(output) + len(errors) == 300
    assert {line["error"]["code"] for line in errors.values()} == {"batch_expired"}


def test_a_file_that_changes(redis_url: str, batches: Batches, tmp_path: Path) -> None:
    source = written(str(tmp_path / "in.jsonl"), [chat_line(f"r{n}") for n in range(5000)])
    with FakeWorker(redis_url, hold=True) as worker, BulkProcess(redis_url, tmp_path) as bulk:
        batch_id = batches.make(source, str(tmp_path / "out"))
        while not worker.taken:
            time.sleep(0.02)
        written(source, [chat_line("other")])
        # Its next turn looks at it again.
        bulk.kill()
        worker.release()
        bulk.start()
        view = batches.ended(batch_id)
    assert view.batch.status is BatchStatus.FAILED
    assert codes(view) == [("input_changed", None)]
    outcome(view)
