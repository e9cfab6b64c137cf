"""What the records of a file are, whatever its format: a name, an endpoint and a body each."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from millrace.openai_api.errors import ApiError
from millrace.openai_api.json_body import decode_body
from millrace_schemas.batch import MAX_CUSTOM_ID, Batch, BatchError, FileFormat, Line, PromptColumn

from .lines import MAX_LINE, RawLine, read_lines
from .storage import BLOCK, Input

if TYPE_CHECKING:
    from .parquet_rows import ParquetRows

T = TypeVar("T")
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
ENDPOINTS = (CHAT, COMPLETIONS, RESPONSES)

_DECODER = msgspec.json.Decoder()
# A field is never longer than a line; the module's own limit is 128 KiB, for the whole process.
csv.field_size_limit(MAX_LINE)
#: Arrays and objects within each other: far from where decoders give up, wherever they are called.
_DEEPEST = 256
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]', re.DOTALL)


class _Model(msgspec.Struct):
    model: str


class Head(msgspec.Struct):
    """What a validation looks at; the rest of a body is looked at when its job is made."""

    custom_id: str
    url: str
    body: _Model
    method: str = "POST"


_HEAD = msgspec.json.Decoder(Head)
#: Bytes of a prompt by which lines are ordered.
_BEGINNING = 8192
_NOTHING = msgspec.Raw()


class _Prompt(msgspec.Struct):
    """Where the endpoints have it, as it stands there."""

    instructions: msgspec.Raw = _NOTHING
    messages: msgspec.Raw = _NOTHING
    prompt: msgspec.Raw = _NOTHING
    input: msgspec.Raw = _NOTHING


class _Asked(msgspec.Struct):
    body: _Prompt


class _Whole(msgspec.Struct):
    body: msgspec.Raw


_BODY = msgspec.json.Decoder(_Whole)
_PROMPT = msgspec.json.Decoder(_Asked)


class BadRow(Exception):
    """`error` says what is wrong with it."""

    def __init__(self, error: BatchError):
        super().__init__(error.message)
        self.error = error


class Row(msgspec.Struct, frozen=True):
    """A record that can be asked for. `fault` is why its body cannot: it costs this record only."""

    line: RawLine
    custom_id: str
    url: str
    body: dict[str, Any]
    fault: ApiError | None = None


class RowReader:
    """The records of one batch's input."""

    def __init__(self, batch: Batch, source: Input):
        self._batch = batch
        self._source = source
        self._header: list[str] | None = None
        self._parquet = _open_parquet(batch, source) if batch.format is FileFormat.PARQUET else None

    @property
    def counts_rows(self) -> bool:
        """Whether offsets of lines count rows and not bytes."""
        return self._parquet is not None

    @property
    def extent(self) -> int:
        """The offset behind the last line; of Parquet, once `lines` has begun."""
        return self._source.size if self._parquet is None else self._parquet.count

    def beginning(self, line: RawLine) -> bytes:
        """What the line's prompt begins with. Sorted by it, prompts stand in the order in which a walk through the tree
        of their prefixes, depth first, meets them: what begins alike stands together, for any length of it.
        """
        if self._batch.format is not FileFormat.OPENAI or line.data is None:
            # Rows share their system prompt.
            return b""
        try:
            body = _PROMPT.decode(line.data).body
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return b""
        text = bytes(body.instructions) + bytes(body.messages) + bytes(body.prompt) + bytes(body.input)
        return text[:_BEGINNING]

    def lines(self, offset: int = 0, number: int = 1, block: int = BLOCK) -> Iterator[RawLine]:
        """Records that are not blank; `block` bytes are read at once.

        Raises StorageError, InputChanged, BadRow when a table has no such column.
        """
        if self._parquet is not None:
            return self._parquet.lines(offset)
        if self._batch.format is not FileFormat.CSV:
            return (
                line
                for line in read_lines(self._source, offset, number, block)
                if line.data is None or (not line.data.isspace() and line.data)
            )
        records = _join_quoted(read_lines(self._source, offset, number, block))
        if offset == 0:
            self._header = self._read_header(next(records, None))
        elif self._header is None:
            self._header = self._read_header(next(_join_quoted(read_lines(self._source)), None))
        return records

    def head(self, line: RawLine) -> tuple[str, str, str]:
        """custom_id, endpoint and model. Raises BadRow."""
        if self._batch.format is not FileFormat.OPENAI:
            row = self.row(line)
            return row.custom_id, row.url, row.body["model"]
        head = _decoded(line, _HEAD)
        _check_id(line, head.custom_id)
        if head.method != "POST":
            raise _bad(line, "invalid_method", f"method must be POST, not {head.method[:80]!r}", "method")
        if not head.body.model:
            raise _bad(line, "missing_required_parameter", "body.model is empty.", "body.model")
        return head.custom_id, head.url, head.body.model

    def again(self, line: Line) -> RawLine | None:
        """A line that was read before; None: it is not there any more. Raises StorageError, InputChanged."""
        if self._parquet is not None:
            return self._parquet.again(line.offset)
        return next(self.lines(line.offset, line.number, line.length), None)

    def row(self, line: RawLine) -> Row:
        """Raises BadRow."""
        if self._batch.format is FileFormat.OPENAI:
            custom_id, url, _ = self.head(line)
            try:
                return Row(line, custom_id, url, decode_body(bytes(_decoded(line, _BODY).body)))
            except ApiError as e:
                return Row(line, custom_id, url, {}, e)
        assert self._batch.rows is not None
        return self._of_table(line, self._cells(line), self._batch.rows)

    def _cells(self, line: RawLine) -> dict[str, Any]:
        if self._batch.format is FileFormat.CSV:
            assert self._header is not None
            fields = _fields(line)
            if len(fields) > len(self._header):
                raise _bad(
                    line,
                    "invalid_csv_row",
                    f"This row has {len(fields)} fields, and the header {len(self._header)}; "
                    "a field with commas stands in quotes.",
                )
            return dict(zip(self._header, fields, strict=False))
        if self._parquet is not None:
            return self._parquet.cells(line)
        cells = _decoded(line, _DECODER)
        if not isinstance(cells, dict):
            raise _bad(line, "invalid_json_line", "This line is not a JSON object.")
        return cells

    def _of_table(self, line: RawLine, cells: dict[str, Any], rows: PromptColumn) -> Row:
        text = cells.get(rows.column)
        if not isinstance(text, str) or not text:
            raise _bad(line, "missing_prompt", f"column {rows.column!r} has no text here", rows.column)
        custom_id = str(line.number)
        if rows.id_column is not None:
            found = cells.get(rows.id_column)
            if not isinstance(found, str | int) or isinstance(found, bool):
                raise _bad(line, "missing_custom_id", f"column {rows.id_column!r} has no name here", rows.id_column)
            custom_id = str(found)
        _check_id(line, custom_id)
        url = self._batch.endpoint or CHAT
        body: dict[str, Any] = {**rows.body, "model": self._batch.model}
        messages = [{"role": "system", "content": rows.system}] if rows.system is not None else []
        messages.append({"role": "user", "content": text})
        if url == COMPLETIONS:
            body["prompt"] = text
        else:
            body["messages" if url == CHAT else "input"] = messages
        return Row(line, custom_id, url, body)

    def _read_header(self, line: RawLine | None) -> list[str]:
        if line is None:
            return []
        header = _fields(line)
        assert self._batch.rows is not None
        for column in (self._batch.rows.column, self._batch.rows.id_column):
            if column is not None and header.count(column) > 1:
                raise _bad(line, "duplicate_column", f"{header.count(column)} columns are called {column!r}", column)
            if column is not None and column not in header:
                raise _bad(
                    line,
                    "missing_column",
                    f"there is no column {column!r}; there are {', '.join(header)[:500]}",
                    column,
                )
        return header


def _open_parquet(batch: Batch, source: Input) -> ParquetRows:
    # It needs the names of this module.
    from .parquet_rows import ParquetRows

    assert batch.rows is not None
    return ParquetRows(source, batch.rows)


def _join_quoted(lines: Iterator[RawLine]) -> Iterator[RawLine]:
    """Records of CSV: a line that ends within quotes goes on in the next one. Its number is that of its first line.

    Raises BadRow when the last one ends within quotes.
    """
    held: list[RawLine] = []
    quotes = size = 0
    for line in lines:
        if not held and (line.data is None or line.data.count(b'"') % 2 == 0):
            if line.data is None or line.data.strip():
                yield line
            continue
        size += line.length
        if size > MAX_LINE:
            # It is not kept, but where it ends has to be known.
            del held[1:]
        held.append(line)
        quotes += (line.data or b"").count(b'"')
        if quotes % 2 == 0:
            yield _joined(held, size)
            held, quotes, size = [], 0, 0
    if held:
        raise _bad(
            held[0],
            "invalid_csv_row",
            "A quoted field of this row has no end; a quote within a field is doubled, and the field stands in quotes.",
        )


def _joined(lines: list[RawLine], size: int) -> RawLine:
    data = None if size > MAX_LINE else b"\n".join(line.data or b"" for line in lines)
    return RawLine(lines[0].number, lines[0].offset, size, data)


def _checked_length(line: RawLine) -> bytes:
    if line.data is None:
        raise _bad(line, "line_too_long", f"This line has {line.length:,} bytes; a line has at most {MAX_LINE:,}.")
    return line.data


def _fields(line: RawLine) -> list[str]:
    """Of a record of CSV. Raises BadRow."""
    data = _checked_length(line)
    try:
        return next(csv.reader([data.decode()]), [])
    except UnicodeDecodeError as e:
        raise _bad(line, "invalid_encoding", f"This line is not UTF-8: {e.reason} at byte {e.start}.") from None
    except csv.Error as e:
        raise _bad(line, "invalid_csv_row", f"This row is no CSV: {e}.") from None


def _decoded(line: RawLine, decoder: msgspec.json.Decoder[T]) -> T:
    """Raises BadRow."""
    data = _checked_length(line)
    try:
        # Few lines have as many brackets, so few are looked through.
        if data.count(b"[") + data.count(b"{") > _DEEPEST and _is_deep(data):
            raise _bad(line, "invalid_json_line", f"This line nests arrays and objects more than {_DEEPEST} deep.")
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise BadRow(_why(line, e)) from None


def _is_deep(data: bytes) -> bool:
    """Whether arrays and objects are nested more than _DEEPEST deep; strings are passed by."""
    depth = 0
    for found in _BRACKETS.finditer(data):
        mark = data[found.start()]
        if mark in b"[{":
            depth += 1
            if depth > _DEEPEST:
                return True
        elif mark in b"]}":
            depth -= 1
    return False


def _check_id(line: RawLine, custom_id: str) -> None:
    if not 0 < len(custom_id) <= MAX_CUSTOM_ID:
        raise _bad(line, "invalid_custom_id", f"custom_id has 1 to {MAX_CUSTOM_ID} characters.", "custom_id")


def _bad(line: RawLine, code: str, message: str, param: str | None = None) -> BadRow:
    return BadRow(BatchError(code, message, line.number, param))


def _why(line: RawLine, error: Exception) -> BatchError:
    """OpenAI's code for a line that does not decode."""
    if isinstance(error, UnicodeDecodeError):
        return BatchError("invalid_json_line", f"This line is not UTF-8: {error.reason}.", line.number)
    if not isinstance(error, msgspec.ValidationError):
        return BatchError("invalid_json_line", "This line is not parseable as valid JSON.", line.number)
    what, _, path = str(error).partition(" - at `$")
    param = path.rstrip("`").removeprefix(".") or None
    if "missing required field" in what:
        name = what.rpartition(" field ")[2].strip("`")
        param = f"{param}.{name}" if param else name
        code = "missing_custom_id" if param == "custom_id" else "missing_required_parameter"
        return BatchError(code, f"{param} is missing.", line.number, param)
    return BatchError("invalid_request", what.replace("`", "") + ".", line.number, param)
