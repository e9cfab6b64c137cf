"""The lines of a shard, a page at a time, each page in the order in which its lines become jobs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from millrace_schemas.batch import Page, Shard

from .lines import RawLine
from .rows import RowReader
from .settings import BulkSettings


@dataclass(slots=True)
class Lines:
    """A page in memory: what of it is not a job yet begins at `page.fed`."""

    page: Page
    lines: list[RawLine]

    def take(self, most: int, most_bytes: int) -> list[RawLine]:
        """The next lines, of about `most_bytes`; they count as fed."""
        taken: list[RawLine] = []
        size = 0
        for line in itertools.islice(self.lines, self.page.fed, self.page.fed + most):
            taken.append(line)
            size += len(line.data or b"")
            if size > most_bytes:
                break
        page = self.page
        self.page = Page(page.offset, page.end, page.number, page.fed + len(taken))
        return taken

    @property
    def is_fed(self) -> bool:
        return self.page.fed >= len(self.lines)


class PageReader:
    """Pages of one shard from `begun` on, which is read again as it was. All of it blocks; call it in a thread."""

    def __init__(self, reader: RowReader, shard: Shard, begun: Page | None, settings: BulkSettings):
        self._reader, self._shard, self._settings = reader, shard, settings
        self._begun = begun
        self._at = (shard.offset, shard.number) if begun is None else (begun.offset, begun.number)
        self._lines: Iterator[RawLine] | None = None

    def read(self) -> Lines | None:
        """The next page; None: there are no more. Raises StorageError, InputChanged."""
        begun, self._begun = self._begun, None
        start = self._at
        lines = self._take(None if begun is None else begun.end)
        if not lines:
            return None
        # Stable: lines that begin alike stay as they stood in the file, and so does a file whose lines all do.
        lines.sort(key=self._reader.beginning)
        fed = 0 if begun is None else begun.fed
        return Lines(Page(start[0], self._at[0], start[1], fed), lines)

    def _take(self, end: int | None) -> list[RawLine]:
        if self._lines is None:
            self._lines = self._reader.lines(*self._at)
        taken: list[RawLine] = []
        size = 0
        while self._at[0] < (self._shard.end if end is None else end):
            line = next(self._lines, None)
            if line is None or line.offset >= self._shard.end:
                self._at = (self._shard.end, 0)
                break
            taken.append(line)
            self._at = _behind(line)
            size += len(line.data or b"")
            if end is None and (len(taken) >= self._settings.page_lines or size >= self._settings.page_bytes):
                break
        return taken


def _behind(line: RawLine) -> tuple[int, int]:
    """Where the next line starts, and its number."""
    return line.offset + line.length, line.number + 1 + (line.data or b"").count(b"\n")
