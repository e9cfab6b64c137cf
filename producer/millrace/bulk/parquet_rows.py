"""Rows of Parquet: of any file, however large its row groups are, only a few rows are in memory at a time."""

from __future__ import annotations

import bisect
import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgspec

from millrace_schemas.batch import BatchError, PromptColumn

from .errors import StorageError
from .lines import MAX_LINE, RawLine
from .rows import BadRow
from .storage import Input

T = TypeVar("T")

#: Bytes of a column that are read at once, and about how many of them become rows at once.
_BUFFER, _BATCH_BYTES = 2 * 1024 * 1024, 1024 * 1024
#: Most rows at once, and most where the footer does not tell how long they are: a dictionary has each text once only.
_BATCH_ROWS, _BATCH_UNKNOWN = 1024, 16
#: Of what pyarrow says, and of the names of columns.
_LONGEST = 500
_ENCODER, _DECODER = msgspec.json.Encoder(), msgspec.json.Decoder()


class ParquetRows:
    """The columns of one file that a batch asks for. Row `n`, from 0, is the line at offset `n`, of length 1."""

    def __init__(self, source: Input, rows: PromptColumn):
        self._source = source
        self._rows = rows
        self._columns = list(dict.fromkeys(name for name in (rows.column, rows.id_column) if name is not None))
        self._metadata: Any = None
        #: The first row of each row group, and behind them the number of rows.
        self._starts: list[int] = [0]
        #: What `again` goes on with: the rows from `_again_at` on.
        self._again: Iterator[RawLine] | None = None
        self._again_at = 0

    @property
    def count(self) -> int:
        """Rows of the file; 0 until any of them was asked for, or when it is no Parquet."""
        return self._starts[-1]

    def lines(self, start: int = 0) -> Iterator[RawLine]:
        """The rows from `start` on.

        Raises StorageError (also without pyarrow), InputChanged, and BadRow when the file cannot be read as Parquet, or
        has no such column of the right kind.
        """
        if not self._source.size:
            return
        _pyarrow()
        file = _File(self._source)
        opened = file.guard(lambda: self._open(file))
        for group, (first, end) in enumerate(itertools.pairwise(self._starts)):
            if start < end:
                yield from self._of_group(file, opened, group, first, max(start, first))

    def again(self, row: int) -> RawLine | None:
        """A row that was read before; None: it is not there. Rows in their order cost one pass through a row group."""
        if self._again is None or row < self._again_at or self._group_of(row) != self._group_of(self._again_at):
            self._again = self.lines(row)
        for line in self._again:
            self._again_at = line.offset + 1
            if line.offset == row:
                return line
        return None

    def _group_of(self, row: int) -> int:
        return bisect.bisect_right(self._starts, row)

    def cells(self, line: RawLine) -> dict[str, Any]:
        """By column. Raises BadRow when one of them cannot be used."""
        cells: dict[str, Any] = _DECODER.decode(line.data or b"{}")
        for name, cell in cells.items():
            # No column has lists: this is a cell that says what is wrong with it.
            if isinstance(cell, list):
                raise BadRow(BatchError(cell[0], f"column {name!r} {cell[1]}", line.number, name))
        return cells

    def _open(self, file: _File) -> Any:
        pa = _pyarrow()
        opened = pa.parquet.ParquetFile(
            file,
            metadata=self._metadata,
            # A whole column chunk would be read at once otherwise.
            buffer_size=_BUFFER,
            pre_buffer=False,
            page_checksum_verification=True,
        )
        self._check(opened.schema_arrow, pa)
        self._metadata = found = opened.metadata
        sizes = (found.row_group(group).num_rows for group in range(found.num_row_groups))
        self._starts = list(itertools.accumulate(sizes, initial=0))
        return opened

    def _check(self, schema: Any, pa: Any) -> None:
        for name in self._columns:
            found = schema.get_all_field_indices(name)
            if not found:
                there = ", ".join(schema.names)[:_LONGEST]
                raise _bad("missing_column", f"there is no column {name!r}; there are {there}", name)
            if len(found) > 1:
                raise _bad("duplicate_column", f"{len(found)} columns are called {name!r}", name)
            kind = schema.field(found[0]).type
            if _is_text(kind, pa) or pa.types.is_null(kind):
                continue
            if name == self._rows.column or not pa.types.is_integer(kind):
                wanted = "text" if name == self._rows.column else "text or whole numbers"
                raise _bad("invalid_column", f"column {name!r} has {str(kind)[:_LONGEST]}, not {wanted}", name)

    def _of_group(self, file: _File, opened: Any, group: int, at: int, start: int) -> Iterator[RawLine]:
        size = file.guard(lambda: self._batch_rows(opened.metadata.row_group(group)))
        batches = opened.iter_batches(size, row_groups=[group], columns=self._columns, use_threads=False)
        while (batch := file.guard(lambda: next(batches, None))) is not None:
            rows = batch.num_rows
            if start < at + rows:
                first = max(start - at, 0)
                yield from self._of_batch(batch.slice(first), at + first)
            at += rows
            # Not both this one and the next.
            del batch

    def _of_batch(self, batch: Any, at: int) -> Iterator[RawLine]:
        columns = [_cells(batch.column(batch.schema.get_field_index(name))) for name in self._columns]
        for row, cells in enumerate(zip(*columns, strict=True), at):
            yield RawLine(row + 1, row, 1, _ENCODER.encode(dict(zip(self._columns, cells, strict=True))))

    def _batch_rows(self, group: Any) -> int:
        """How many rows have about _BATCH_BYTES, as far as the file's footer tells."""
        chunks = [group.column(n) for n in range(group.num_columns)]
        chunks = [chunk for chunk in chunks if chunk.path_in_schema in self._columns]
        most = _BATCH_UNKNOWN if any(chunk.has_dictionary_page for chunk in chunks) else _BATCH_ROWS
        size = sum(chunk.total_uncompressed_size for chunk in chunks)
        fitting: int = _BATCH_BYTES * group.num_rows // max(size, 1)
        return max(1, min(most, fitting))


def _is_text(kind: Any, pa: Any) -> bool:
    """Old writers do not say that their bytes are text."""
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if types.is_dictionary(kind):
        kind = kind.value_type
    return any(
        is_kind(kind)
        for is_kind in (
            types.is_string, types.is_large_string, types.is_string_view,
            types.is_binary, types.is_large_binary, types.is_binary_view,
        )
    )  # fmt: skip


def _cells(column: Any) -> list[Any]:
    """What JSON has: text, numbers, None, and in the place of what cannot be used a list of code and reason."""
    pa = _pyarrow()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not _is_text(column.type, pa):
        return list(column.to_pylist())
    try:
        cells = column.to_pylist()
    except UnicodeDecodeError:
        # One of them: which?
        cells = [None if (data := cell.as_buffer()) is None else bytes(data) for cell in column]
    return [None if cell is None else _text(cell) for cell in cells]


def _text(cell: str | bytes) -> str | list[str]:
    if len(cell) > MAX_LINE:
        return ["line_too_long", f"has more than {MAX_LINE:,} characters here"]
    if isinstance(cell, str):
        return cell
    try:
        return cell.decode()
    except UnicodeDecodeError as e:
        return ["invalid_encoding", f"is not UTF-8 here: {e.reason} at byte {e.start}"]


def _bad(code: str, message: str, column: str | None = None) -> BadRow:
    return BadRow(BatchError(code, message, None, column))


def _pyarrow() -> Any:
    """Slow to import, and not installed everywhere. Raises StorageError."""
    try:
        import pyarrow.parquet
    except ImportError as e:
        # Another process may have it: the batch waits.
        raise StorageError(f'Parquet needs pyarrow ({e}): pip install "millrace[parquet]"') from e
    return pyarrow


class _File(io.RawIOBase):
    """An Input as pyarrow reads files, and what went wrong when it did."""

    def __init__(self, source: Input):
        self._source = source
        self._at = 0
        self._failure: Exception | None = None

    def guard(self, do: Callable[[], T]) -> T:
        """`do()`; what is no fault of the file is raised as it was, the rest is a BadRow."""
        pa = _pyarrow()
        try:
            return do()
        except (pa.ArrowException, OSError, ValueError, OverflowError, EOFError) as e:
            if self._failure is not None:
                raise self._failure from e
            reason = " ".join(str(e).split())[:_LONGEST]
            raise _bad("invalid_parquet", f"The file cannot be read as Parquet: {reason}") from e

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence]
        self._at = max(start + offset, 0)
        return self._at

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._source.read(self._at, self._source.size - self._at if size is None or size < 0 else size)
        except Exception as e:
            self._failure = e
            raise
        self._at += len(data)
        return data
