"""Input that is wrong in every way that we know of: it is said which line and why, or that line alone fails."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bulk_parts import Batches, BulkThread, chat_line, outcome, written
from fake_worker import FakeWorker
from millrace.bulk.errors import InputChanged, StorageError
from millrace.bulk.lines import read_lines
from millrace.bulk.settings import BulkSettings
from millrace.bulk.storage import storage_of
from millrace_schemas.batch import BatchStatus, PromptColumn
from servers import S3Server

COLUMNS = PromptColumn(column="text", id_column="id")


@pytest.fixture
def worker(redis_url: str) -> Iterator[FakeWorker]:
    with FakeWorker(redis_url) as worker:
        yield worker


def line(body: str, custom_id: str = '"x"', url: str = "/v1/chat/completions", **more: Any) -> bytes:
    """A line that json.dumps would not write."""
    rest = "".join(f", {json.dumps(name)}: {json.dumps(value)}" for name, value in more.items())
    return f'{{"custom_id": {custom_id}, "url": "{url}", "body": {body}{rest}}}'.encode()


def codes(view: Any) -> list[tuple[str, int | None]]:
    return [(error.code, error.line) for error in view.batch.errors]


GOOD = chat_line("good").encode()
HI = '"model": "demo", "messages": [{"role": "user", "content": "hi"}]'
#: Files of OpenAI's lines that fail as a whole, and with what.
FILES: dict[str, tuple[list[bytes], list[tuple[str, int | None]]]] = {
    "nothing": ([], [("empty_file", None)]),
    "blank lines": ([b"", b"  ", b"\t", b"\r"], [("empty_file", None)]),
    "a mark only": ([b"\xef\xbb\xbf"], [("empty_file", None)]),
    "cut short": ([GOOD, GOOD[:-9]], [("invalid_json_line", 2)]),
    "no object": ([GOOD, b"[1]", b"17", b"null", b'"a"'], [("invalid_request", n) for n in (2, 3, 4, 5)]),
    "NUL": ([GOOD, b"\0\0\0"], [("invalid_json_line", 2)]),
    "a name that is no text": ([line("{" + HI + "}", "5")], [("invalid_request", 1)]),
    "a name of half a character": ([line("{" + HI + "}", '"\\ud800"')], [("invalid_json_line", 1)]),
    "half a character": ([GOOD, line('{"user": "\\ud83d", ' + HI + "}")], [("invalid_json_line", 2)]),
    "a name in Latin-1": ([line("{" + HI + "}", '"\xe9"').decode().encode("latin-1")], [("invalid_json_line", 1)]),
    "a mark in the middle": ([GOOD, b"\xef\xbb\xbf" + GOOD], [("invalid_json_line", 2)]),
    "UTF-16": ([GOOD.decode().encode("utf-16")], [("invalid_json_line", 1)]),
    "not a number": ([GOOD, line('{"temperature": NaN, ' + HI + "}")], [("invalid_json_line", 2)]),
    "deep": ([GOOD, line('{"x": ' + "[" * 50_000 + "]" * 50_000 + ", " + HI + "}")], [("invalid_json_line", 2)]),
    "no name": ([b'{"url": "/v1/completions", "body": {"model": "demo"}}'], [("missing_custom_id", 1)]),
    "an empty name": ([line("{" + HI + "}", '""')], [("invalid_custom_id", 1)]),
    "a long name": ([line("{" + HI + "}", json.dumps("n" * 513))], [("invalid_custom_id", 1)]),
    "a name twice": ([GOOD, chat_line("b").encode(), GOOD], [("duplicate_custom_id", 3)]),
    "no body": ([b'{"custom_id": "a", "url": "/v1/completions"}'], [("missing_required_parameter", 1)]),
    "a body that is no object": ([line("[]")], [("invalid_request", 1)]),
    "no model": ([line('{"messages": []}')], [("missing_required_parameter", 1)]),
    "an empty model": ([line('{"model": ""}')], [("missing_required_parameter", 1)]),
    "an unknown model": ([chat_line("a", model="other").encode()], [("model_not_found", 1)]),
    "a model that can be none": ([chat_line("a", model="{a}:* " + "m" * 500).encode()], [("model_not_found", 1)]),
    "two models": ([GOOD, chat_line("b", model="other").encode()], [("model_mismatch", 2)]),
    "another endpoint": ([line("{" + HI + "}", url="/v1/embeddings")], [("invalid_url", 1)]),
    "two endpoints": ([GOOD, line("{" + HI + "}", url="/v1/completions")], [("url_mismatch", 2)]),
    "GET": ([line("{" + HI + "}", method="GET")], [("invalid_method", 1)]),
    "a line of 17 MB": ([GOOD, b"x" * 17_000_000, chat_line("b").encode()], [("line_too_long", 2)]),
}  # fmt: skip


def test_files_that_fail_as_a_whole(batches: Batches, bulk: BulkThread, worker: FakeWorker, tmp_path: Path) -> None:
    made = {}
    for number, (name, (lines, _)) in enumerate(FILES.items()):
        source = tmp_path / f"{number}.jsonl"
        source.write_bytes(b"\n".join(lines))
        made[name] = batches.make(str(source), str(tmp_path / "out"))
    views = {name: batches.ended(batch_id) for name, batch_id in made.items()}
    assert {name: codes(view) for name, view in views.items()} == {name: wrong for name, (_, wrong) in FILES.items()}
    assert {view.batch.status for view in views.values()} == {BatchStatus.FAILED}


#: Bodies that cost their own line only; whether the answer names what is wrong with it.
BODIES = {
    "a number out of range": '{"temperature": 1e999, ' + HI + "}",
    "an integer of 5,000 digits": '{"seed": ' + "9" * 5000 + ", " + HI + "}",
    "an integer of 30 digits": '{"seed": ' + "9" * 30 + ", " + HI + "}",
    "a stop id of 30 digits": '{"stop_token_ids": [' + "9" * 30 + "], " + HI + "}",
    "nested too deeply": '{"metadata": ' + '{"a": ' * 40 + "1" + "}" * 40 + ", " + HI + "}",
    "no messages": '{"model": "demo"}',
    "messages that are none": '{"model": "demo", "messages": [null, 5, {"role": []}]}',
    "a parameter that there is not": '{"colour": "red", ' + HI + "}",
    "a temperature of -1": '{"temperature": -1, ' + HI + "}",
    "a stream": '{"stream": true, ' + HI + "}",
    "max_tokens as text": '{"max_tokens": "64", ' + HI + "}",
    "metadata of numbers": '{"metadata": {"a": 1}, ' + HI + "}",
}


def test_bodies_that_cost_their_own_line(
    batches: Batches, bulk: BulkThread, worker: FakeWorker, tmp_path: Path
) -> None:
    lines = [line(body, json.dumps(name)) for name, body in BODIES.items()]
    # What no decoder of UTF-8 takes, in a place that a validation passes by.
    lines.append(line('{"user": "@", ' + HI + "}", '"no UTF-8"').replace(b"@", b"\xff\xfe"))
    good = {
        "NUL in it": line('{"user": "a\\u0000b", ' + HI + "}", '"NUL in it"'),
        "16.0 tokens": line('{"max_tokens": 16.0, ' + HI + "}", '"16.0 tokens"'),
        "brackets in a text": line("{" + HI.replace("hi", "[{" * 400) + "}", '"brackets in a text"'),
    }
    source = tmp_path / "in.jsonl"
    # Blank lines, and both kinds of ends.
    source.write_bytes(b"\xef\xbb\xbf" + b"\r\n\n  \n".join([GOOD, *lines, *good.values()]))
    view = batches.ended(batches.make(str(source), str(tmp_path / "out")))
    assert view.batch.status is BatchStatus.COMPLETED, view
    output, errors = outcome(view)
    assert set(output) == {"good", *good}
    assert set(errors) == {*BODIES, "no UTF-8"}
    assert {found["response"]["status_code"] for found in errors.values()} == {400}
    assert all(found["response"]["body"]["error"]["message"] for found in errors.values())


#: Tables that fail, and with what.
TABLES: dict[str, tuple[str, bytes, list[tuple[str, int | None]]]] = {
    "a quote without an end": ("csv", b'id,text\n1,"one\n2,two\n3,three\n', [("invalid_csv_row", 2)]),
    "a quote in the middle": ("csv", b'id,text\n1,5" pipe\n2,6" hose\n3,x\n', [("invalid_csv_row", 2)]),
    "too many fields": ("csv", b"id,text\n1,one, two\n2,three\n", [("invalid_csv_row", 2)]),
    "too few fields": ("csv", b"id,text\n1\n2,two\n", [("missing_prompt", 2)]),
    "a lone carriage return": ("csv", b"id,text\n1,a\rb\n", [("invalid_csv_row", 2)]),
    "a column twice": ("csv", b"id,text,text\n1,one,two\n", [("duplicate_column", 1)]),
    "a column that is not there": ("csv", b"id,words\n1,one\n", [("missing_column", 1)]),
    "no rows": ("csv", b"id,text\n", [("empty_file", None)]),
    "an empty table": ("csv", b"", [("empty_file", None)]),
    "a name twice": ("csv", b"id,text\n1,one\n1,two\n", [("duplicate_custom_id", 3)]),
    "no name": ("csv", b"id,text\n,one\n", [("invalid_custom_id", 2)]),
    "no text": ("csv", b"id,text\n1,\n", [("missing_prompt", 2)]),
    "Latin-1": ("csv", "id,text\n1,é\n".encode("latin-1"), [("invalid_encoding", 2)]),
    "a header in Latin-1": ("csv", "id,text,é\n1,a,b\n".encode("latin-1"), [("invalid_encoding", 1)]),
    "a row of 17 MB": ("csv", b'id,text\n1,"' + (b"x" * 999 + b"\n") * 17_000 + b'"\n', [("line_too_long", 2)]),
    "rows that are no objects": ("jsonl", b'[1]\n{"id": 1, "text": "a"}\n', [("invalid_json_line", 1)]),
    "deep rows": ("jsonl", b'{"id": 1, "text": ' + b"[" * 9000 + b"]" * 9000 + b"}", [("invalid_json_line", 1)]),
    "a text that is none": ("jsonl", b'{"id": 1, "text": 5}', [("missing_prompt", 1)]),
    "a name that is none": ("jsonl", b'{"id": 1.5, "text": "a"}', [("missing_custom_id", 1)]),
    "a name of 5,000 digits": ("jsonl", b'{"id": ' + b"9" * 5000 + b', "text": "a"}', [("invalid_request", 1)]),
    "a cell out of range": ("jsonl", b'{"id": 1, "text": "a", "x": 1e999}', [("invalid_request", 1)]),
}  # fmt: skip


def test_tables_that_fail(batches: Batches, bulk: BulkThread, worker: FakeWorker, tmp_path: Path) -> None:
    made = {}
    for number, (name, (kind, data, _)) in enumerate(TABLES.items()):
        source = tmp_path / f"{number}.{kind}"
        source.write_bytes(data)
        made[name] = batches.make(str(source), str(tmp_path / "out"), model="demo", rows=COLUMNS)
    found = {name: codes(batches.ended(batch_id)) for name, batch_id in made.items()}
    assert found == {name: wrong for name, (_, _, wrong) in TABLES.items()}


def test_odd_tables_that_do_not_fail(batches: Batches, bulk: BulkThread, worker: FakeWorker, tmp_path: Path) -> None:
    texts = {"1": "long " * 100_000, "2": "NUL \0 in it", "3": 'two\r\n\r\nlines, "quoted"', "4": "é " * 3}
    rows = "".join('{},"{}",\r\n\r\n'.format(name, text.replace('"', '""')) for name, text in texts.items())
    source = tmp_path / "in.csv"
    # A column without a name, twice, that nobody asked for, and a row that lacks it.
    source.write_bytes(b"\xef\xbb\xbf\r\n" + f"id,text,,\r\n{rows}5,short".encode())
    view = batches.ended(batches.make(str(source), str(tmp_path / "out"), model="demo", rows=COLUMNS))
    assert view.batch.status is BatchStatus.COMPLETED, view
    output, _ = outcome(view)
    found = {name: answer["response"]["body"]["choices"][0]["message"]["content"] for name, answer in output.items()}
    expected = {name: text.upper() for name, text in texts.items()} | {"5": "SHORT"}
    # Within quotes a line ends as a line of the file does.
    assert found == {name: text.replace("\r\n", "\n") for name, text in expected.items()}


def test_a_line_of_100_mb_is_passed_by(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    with path.open("wb") as file:
        file.write(b"first\n")
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b"\nlast\n")
    source = storage_of(f"file://{path}").open(f"file://{path}")
    found = [(line.number, line.offset, line.length, line.data) for line in read_lines(source)]
    source.close()
    assert found == [(1, 0, 6, b"first"), (2, 6, 100_000_001, None), (3, 100_000_007, 5, b"last")]


def test_places_that_can_be_no_input(batches: Batches, s3_env: S3Server, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    places = {
        "a directory": str(tmp_path),
        "a pipe": str(tmp_path / "pipe"),
        "a device": "/dev/zero",
        "a link to itself": str(loop),
        "a name that is too long": str(tmp_path / ("n" * 300)),
        "a name with NUL": "file:///tmp/a%00b",
        "an object that is not there": "s3://answers/no.jsonl",
        "a bucket that is not there": "s3://nowhere/in.jsonl",
        "a bucket that can be none": "s3://no bucket/in.jsonl",
        "a bucket alone": "s3://answers",
    }
    for name, place in places.items():
        url = place if "://" in place else f"file://{place}"
        with pytest.raises(StorageError) as error:
            storage_of(url).open(url)
        assert (error.value.code, error.value.lasting) == ("not_found", True), name


@pytest.mark.parametrize("change", ["longer", "shorter", "replaced", "touched", "gone"])
def test_a_local_file_that_changes_while_it_is_read(tmp_path: Path, change: str) -> None:
    path = Path(written(str(tmp_path / "in.jsonl"), [chat_line(f"r{n}") for n in range(50)]))
    source = storage_of(f"file://{path}").open(f"file://{path}")
    assert source.read(0, 10)
    match change:
        case "longer":
            with path.open("ab") as file:
                file.write(b"more")
        case "shorter":
            os.truncate(path, 100)
        case "replaced":
            (tmp_path / "other").write_bytes(path.read_bytes())
            (tmp_path / "other").replace(path)
        case "touched":
            os.utime(path, (1, 1))
        case "gone":
            path.unlink()
    with pytest.raises(StorageError if change == "gone" else InputChanged):
        source.read(10, 10)
    source.close()


@pytest.mark.parametrize("change", ["replaced", "gone"])
def test_an_object_that_changes_while_it_is_read(s3_env: S3Server, change: str) -> None:
    storage, url = storage_of("s3://answers"), f"s3://answers/changing-{change}.jsonl"
    storage.write(url, b"one\ntwo\n")
    source = storage.open(url)
    assert source.read(0, 4) == b"one\n"
    if change == "gone":
        storage.remove(url)
    else:
        time.sleep(0.01)
        storage.write(url, b"one\nTWO\n")
    with pytest.raises(StorageError if change == "gone" else InputChanged):
        source.read(4, 4)


def test_a_file_that_a_tail_is_missing_of(redis_url: str, batches: Batches, worker: FakeWorker, tmp_path: Path) -> None:
    """The last line has no end, and none of them is long: all count."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\n".join(chat_line(f"r{n}").encode() for n in range(5)))
    with BulkThread(redis_url, BulkSettings()):
        output, _ = outcome(batches.ended(batches.make(str(source), str(tmp_path / "out"))))
    assert set(output) == {f"r{n}" for n in range(5)}
