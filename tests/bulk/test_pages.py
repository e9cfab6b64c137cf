"""The order in which lines become jobs, and that a successor finds the same one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bulk_parts import chat_line, written
from millrace.bulk.pages import Lines, PageReader
from millrace.bulk.rows import RowReader
from millrace.bulk.settings import BulkSettings
from millrace.bulk.storage import Input, storage_of, url_of
from millrace.bulk.validation import validate
from millrace_schemas.batch import Batch, FileFormat, Line, Page, PromptColumn, Shard

Readers = Callable[..., RowReader]


@pytest.fixture
def reader_of() -> Iterator[Callable[..., RowReader]]:
    with ExitStack() as opened:

        def open_(path: str, batch_format: FileFormat = FileFormat.OPENAI) -> RowReader:
            source = storage_of(url_of(path)).open(url_of(path))
            opened.callback(source.close)
            return make_reader(url_of(path), source, batch_format)

        yield open_


def make_reader(url: str, source: Input, batch_format: FileFormat) -> RowReader:
    rows = PromptColumn(column="text") if batch_format is FileFormat.CSV else None
    batch = Batch(
        id="batch_1", input=url, output=url, created_at=1.0, expires_at=2e9, completion_window="1h",
        format=batch_format, rows=rows, model="demo",
    )  # fmt: skip
    return RowReader(batch, source)


def shards_of(reader: RowReader, settings: BulkSettings) -> tuple[Shard, ...]:
    finding = validate(reader._batch, reader._source, settings, lambda share: None)
    assert not finding.errors
    return finding.shards


def pages_of(reader: RowReader, shard: Shard, settings: BulkSettings, begun: Page | None = None) -> list[Lines]:
    pages = PageReader(reader, shard, begun, settings)
    found = []
    while (page := pages.read()) is not None:
        found.append(page)
    return found


def asked(system: str, text: str) -> str:
    line = json.loads(chat_line(f"{system}-{text}", text))
    line["body"]["messages"].insert(0, {"role": "system", "content": system})
    return json.dumps(line)


def test_lines_that_begin_alike_meet(reader_of: Readers, tmp_path: Path) -> None:
    """Also beyond their system prompt."""
    lines = [asked(f"system {n % 3}", f"{'ab'[n % 2]} {n}") for n in range(60)]
    reader = reader_of(written(str(tmp_path / "in.jsonl"), lines))
    settings = BulkSettings()
    (shard,) = shards_of(reader, settings)
    (page,) = pages_of(reader, shard, settings)
    names = [reader.head(line)[0] for line in page.lines]
    heads = [name.rsplit(" ", 1)[0] for name in names]
    assert sorted(names) == sorted(json.loads(line)["custom_id"] for line in lines)
    # Each of the six beginnings is one run.
    assert len(set(itertools.pairwise(heads)) - {(head, head) for head in heads}) == 5


@pytest.mark.parametrize("url", ["/v1/completions", "/v1/responses"])
def test_the_other_endpoints_as_well(reader_of: Readers, tmp_path: Path, url: str) -> None:
    def line(n: int) -> str:
        head = {"prompt": f"{n % 2} {n}"} if url == "/v1/completions" else {"instructions": str(n % 2), "input": str(n)}
        return json.dumps({"custom_id": str(n), "method": "POST", "url": url, "body": {"model": "demo", **head}})

    reader = reader_of(written(str(tmp_path / "in.jsonl"), map(line, range(8))))
    (page,) = pages_of(reader, shards_of(reader, BulkSettings())[0], BulkSettings())
    assert [int(reader.head(line)[0]) % 2 for line in page.lines] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_shards_and_pages_hold_each_line_once(reader_of: Readers, tmp_path: Path) -> None:
    """Also with a byte order mark, blank lines, CRLF and a last line without an end."""
    lines = [asked(f"system {n % 5}", f"{n} " + "x" * (n % 90)) for n in range(1000)]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines[:500], "", "  ", *lines[500:]]).encode())
    settings = BulkSettings(shard_bytes=20_000, page_lines=37, page_bytes=5_000)
    reader = reader_of(str(path))
    shards = shards_of(reader, settings)
    assert len(shards) > 5
    pages = [page for shard in shards for page in pages_of(reader, shard, settings)]
    assert len(pages) > len(shards)
    found = [line for page in pages for line in page.lines]
    assert sorted(reader.head(line)[0] for line in found) == sorted(json.loads(line)["custom_id"] for line in lines)
    # Numbers are those of the file, blank lines included.
    assert sorted(line.number for line in found) == [*range(1, 501), *range(503, 1003)]


def test_a_successor_finds_the_same_order(reader_of: Readers, tmp_path: Path) -> None:
    """Also when its own pages are of another size."""
    lines = [asked(f"system {n % 5}", str(n)) for n in range(300)]
    reader = reader_of(written(str(tmp_path / "in.jsonl"), lines))
    settings = BulkSettings(page_lines=100)
    (shard,) = shards_of(reader, settings)
    first, second, third = pages_of(reader, shard, settings)
    taken = second.take(30, 10**9)
    assert [line.number for line in taken] == [line.number for line in second.lines[:30]]
    resumed = pages_of(reader, shard, BulkSettings(page_lines=7), second.page)
    assert resumed[0].lines == second.lines
    assert resumed[0].page.fed == 30
    assert resumed[0].take(5, 10**9) == second.lines[30:35]
    rest = [line.number for page in resumed[1:] for line in page.lines]
    assert sorted(rest) == sorted(line.number for line in third.lines)
    assert sorted(line.number for line in first.lines) == list(range(1, 101))


def test_a_record_of_csv_is_in_one_shard(reader_of: Readers, tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b"text\r\n" + b"".join(b'"row %d\r\n\r\nof three lines"\r\n' % n for n in range(200)))
    settings = BulkSettings(shard_bytes=500, page_lines=7)
    reader = reader_of(str(path), FileFormat.CSV)
    shards = shards_of(reader, settings)
    assert len(shards) > 5
    # Each by a reader of its own, which has to find the header.
    rows = []
    for shard in shards:
        own = reader_of(str(path), FileFormat.CSV)
        rows += [own.row(line) for page in pages_of(own, shard, settings) for line in page.lines]
    assert [row.body["messages"][0]["content"] for row in rows] == [f"row {n}\n\nof three lines" for n in range(200)]
    assert [row.custom_id for row in rows] == [str(2 + 3 * n) for n in range(200)]


def test_a_line_is_read_again_by_its_place(reader_of: Readers, tmp_path: Path) -> None:
    reader = reader_of(written(str(tmp_path / "in.jsonl"), [chat_line(f"r{n}") for n in range(50)]))
    lines = list(reader.lines())
    line = lines[30]
    assert reader.again(Line(line.number, line.offset, line.length, "r30")) == line
