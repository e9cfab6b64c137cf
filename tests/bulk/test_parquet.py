"""Parquet with a column of prompts: row by row, from any row on, in little memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bulk_parts import Batches, BulkThread, outcome
from fake_worker import FakeWorker
from millrace.bulk.errors import InputChanged, StorageError
from millrace.bulk.pages import PageReader
from millrace.bulk.rows import BadRow, RowReader
from millrace.bulk.settings import BulkSettings
from millrace.bulk.storage import Input, storage_of, url_of
from millrace.bulk.submitting import make_batch
from millrace.bulk.validation import validate
from millrace_schemas.batch import BatchStatus, Line, PromptColumn, Shard
from servers import S3Server

COLUMNS = PromptColumn(column="text", id_column="id")
PROMPTS = [f"prompt {n}" for n in range(1000)]


def parquet(path: Path, rows_of_a_group: int = 100, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=rows_of_a_group)
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return parquet(tmp_path / "in.parquet", 270, text=PROMPTS, id=range(1000), other=[0.5] * 1000)


@pytest.fixture
def reader_of() -> Iterator[Callable[..., RowReader]]:
    opened: list[Input] = []

    def open_(path: Path, rows: PromptColumn = COLUMNS) -> RowReader:
        opened.append(storage_of("file://").open(url_of(str(path))))
        return RowReader(make_batch(str(path), "/nowhere", now=1.0, model="demo", rows=rows), opened[-1])

    yield open_
    for source in opened:
        source.close()


def texts(reader: RowReader, start: int = 0) -> list[str]:
    return [reader.row(line).body["messages"][0]["content"] for line in reader.lines(start)]


def problems(reader: RowReader) -> list[tuple[str, int | None]]:
    finding = validate(reader._batch, reader._source, BulkSettings(), lambda share: None)
    return [(error.code, error.line) for error in finding.errors]


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_file_in_shards(
    redis_url: str, batches: Batches, prompts: Path, s3_env: S3Server, tmp_path: Path, place: str
) -> None:
    source, output = str(prompts), str(tmp_path / "out")
    if place == "s3":
        # Not into its directory: the server may have read that before, and keeps what it saw for minutes.
        boto3.client("s3").upload_file(str(prompts), "answers", "in.pq")
        source, output = "s3://answers/in.pq", "s3://answers/out"
    settings = BulkSettings(shard_rows=300, window=128, turn=0.5)
    with BulkThread(redis_url, settings), BulkThread(redis_url, settings), FakeWorker(redis_url):
        view = batches.ended(batches.make(source, output, model="demo", rows=COLUMNS))
    assert view.batch.status is BatchStatus.COMPLETED, view
    assert view.batch.shards == (Shard(0, 300, 1), Shard(300, 600, 301), Shard(600, 900, 601), Shard(900, 1000, 901))
    output_lines, _ = outcome(view)
    found = {name: it["response"]["body"]["choices"][0]["message"]["content"] for name, it in output_lines.items()}
    assert found == {str(n): text.upper() for n, text in enumerate(PROMPTS)}


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
    ids=str,
)  # fmt: skip
def test_kinds_of_text(reader_of: Callable[..., RowReader], tmp_path: Path, kind: pa.DataType) -> None:
    rows = ["plain", "größer 🌊", "two\nlines", 'a "quote"', "plain"] * 50
    path = parquet(tmp_path / "in.parquet", text=pa.array(rows, pa.string()).cast(kind), id=range(250))
    assert texts(reader_of(path)) == rows
    assert not problems(reader_of(path))


@pytest.mark.parametrize("start", [0, 1, 269, 270, 271, 540, 999, 1000])
def test_rows_from_any_row_on(reader_of: Callable[..., RowReader], prompts: Path, start: int) -> None:
    whole = list(reader_of(prompts).lines())
    assert [(line.number, line.offset, line.length) for line in whole] == [(n + 1, n, 1) for n in range(1000)]
    assert list(reader_of(prompts).lines(start)) == whole[start:]


def test_a_successor_finds_the_same_rows(reader_of: Callable[..., RowReader], prompts: Path) -> None:
    settings, shard = BulkSettings(page_lines=70), Shard(300, 600, 301)
    pages = PageReader(reader_of(prompts), shard, None, settings)
    first, second = pages.read(), pages.read()
    assert first is not None
    assert second is not None
    second.take(30, 10**9)
    resumed = PageReader(reader_of(prompts), shard, second.page, BulkSettings(page_lines=7))
    again = resumed.read()
    assert again is not None
    assert (again.lines, again.page) == (second.lines, second.page)
    rest = []
    while (page := resumed.read()) is not None:
        rest += page.lines
    assert [line.offset for line in first.lines + again.lines + rest] == list(range(300, 600))


def test_rows_are_read_again_by_their_place(reader_of: Callable[..., RowReader], prompts: Path) -> None:
    reader = reader_of(prompts)
    lines = list(reader.lines())
    for row in (500, 501, 900, 3, 3, 0):
        assert reader.again(Line(row + 1, row, 1, str(row))) == lines[row]
    assert reader.again(Line(2001, 2000, 1, "2000")) is None


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"words": ["a"], "id": [1]}, ("missing_column", None)),
        ({"text": ["a"]}, ("missing_column", None)),
        ({"text": [1], "id": [1]}, ("invalid_column", None)),
        ({"text": [["a"]], "id": [1]}, ("invalid_column", None)),
        ({"text": [{"a": "b"}], "id": [1]}, ("invalid_column", None)),
        ({"text": ["a"], "id": [0.5]}, ("invalid_column", None)),
        ({"text": ["a"], "id": [True]}, ("invalid_column", None)),
        ({"text": ["a", None, ""], "id": [1, 2, 3]}, ("missing_prompt", 2)),
        ({"text": pa.nulls(1), "id": [1]}, ("missing_prompt", 1)),
        ({"text": ["a", "b"], "id": [1, None]}, ("missing_custom_id", 2)),
        ({"text": ["a", "b"], "id": ["x", "x"]}, ("duplicate_custom_id", 2)),
        ({"text": pa.array([b"a", b"\xff"]).cast(pa.string(), safe=False), "id": [1, 2]}, ("invalid_encoding", 2)),
        ({"text": ["a", "x" * (17 * 1024 * 1024)], "id": [1, 2]}, ("line_too_long", 2)),
        ({"text": pa.array([], pa.string()), "id": pa.array([], pa.int64())}, ("empty_file", None)),
    ],
)
def test_what_is_wrong_with_a_table(
    reader_of: Callable[..., RowReader], tmp_path: Path, columns: dict[str, Any], expected: tuple[str, int | None]
) -> None:
    assert problems(reader_of(parquet(tmp_path / "in.parquet", **columns)))[0] == expected


def test_columns_of_one_name(reader_of: Callable[..., RowReader], tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "in.parquet")
    assert problems(reader_of(tmp_path / "in.parquet", PromptColumn(column="text"))) == [("duplicate_column", None)]


@pytest.mark.parametrize("damage", ["empty", "no parquet", "truncated", "footer", "page"])
def test_broken_files(reader_of: Callable[..., RowReader], tmp_path: Path, damage: str) -> None:
    path = tmp_path / "in.parquet"
    columns = {"text": [f"{n} " * 50 for n in range(2000)], "id": range(2000)}
    pq.write_table(pa.table(columns), path, compression="none", write_page_checksum=True)
    data = bytearray(path.read_bytes())
    if damage == "footer":
        data[-200:-8] = b"\x55" * 192
    elif damage == "page":
        data[len(data) // 2] ^= 0xFF
    path.write_bytes({"empty": b"", "no parquet": b"id,text\r\n", "truncated": data[:-100]}.get(damage, data))
    assert problems(reader_of(path)) == [("empty_file" if damage == "empty" else "invalid_parquet", None)]


def test_a_file_that_changes_while_it_is_read(reader_of: Callable[..., RowReader], prompts: Path) -> None:
    reader = reader_of(prompts)
    lines = reader.lines()
    next(lines)
    parquet(prompts, text=["other"], id=[1])
    with pytest.raises(InputChanged, match="changed while it was read"):
        list(lines)


def test_without_pyarrow(reader_of: Callable[..., RowReader], prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet")
    with pytest.raises(StorageError, match=r'pip install "millrace\[parquet\]"') as found:
        problems(reader_of(prompts))
    # The batch waits until there is one that has it.
    assert not found.value.lasting


def test_only_its_columns_are_read(reader_of: Callable[..., RowReader], tmp_path: Path) -> None:
    wide = {f"c{n}": [f"{n} {row} {row * row} " * 200 for row in range(400)] for n in range(100)}
    path = parquet(tmp_path / "in.parquet", 100, **wide, text=PROMPTS[:400], id=range(400))
    reader = reader_of(path)
    source, size = reader._source, 0

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(source, name)

        def read(self, offset: int, length: int) -> bytes:
            nonlocal size
            data = source.read(offset, length)
            size += len(data)
            return data

    counted: Any = Counting()
    assert texts(RowReader(reader._batch, counted)) == PROMPTS[:400]
    assert size < source.size / 4


def test_a_large_row_group_takes_little_memory(tmp_path: Path) -> None:
    """In a process of its own, which holds nothing else."""
    # 200 MB in one row group.
    rows = [f"{n} ".ljust(2000, "x") for n in range(100_000)]
    pq.write_table(pa.table({"text": rows}), tmp_path / "in.parquet", row_group_size=len(rows), compression="none")
    script = f"""
import pyarrow.parquet
from millrace.bulk.rows import RowReader
from millrace.bulk.storage import storage_of
from millrace.bulk.submitting import make_batch
from millrace_schemas.batch import PromptColumn
path = {str(tmp_path / "in.parquet")!r}
batch = make_batch(path, "/nowhere", now=1.0, model="demo", rows=PromptColumn(column="text"))
reader = RowReader(batch, storage_of(batch.input).open(batch.input))
# Not ru_maxrss, which begins with that of the parent.
most = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024
before = most()
print(sum(1 for line in reader.lines()), most() - before)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    count, megabytes = map(int, ran.stdout.split())
    assert count == 100_000
    assert megabytes < 100


def test_a_table_s_name_says_what_it_is() -> None:
    for name in ("in.parquet", "in.PQ"):
        assert make_batch(name, "/nowhere", now=1.0, rows=COLUMNS).format == "parquet"


def test_a_bad_row_says_which_column(reader_of: Callable[..., RowReader], tmp_path: Path) -> None:
    reader = reader_of(parquet(tmp_path / "in.parquet", words=["a"], id=[1]))
    with pytest.raises(BadRow, match="there is no column 'text'; there are words, id"):
        list(reader.lines())
