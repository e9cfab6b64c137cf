"""Answers on their way to a durable part."""

from __future__ import annotations

import time
from typing import NamedTuple

from millrace_schemas import Usage
from millrace_schemas.batch import Batch, Line, Part

from .lines import RawLine
from .storage import storage_of
from .store import COUNTS


class Buffer:
    """Lines of one of the two files, in memory."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._lines = 0

    def __len__(self) -> int:
        return len(self._data)

    def add(self, line: bytes) -> None:
        self._data += line
        self._lines += 1

    def write(self, batch: Batch, name: str) -> Part | None:
        """Makes a part of what is there, durable on return; None: nothing is. Raises StorageError."""
        if not self._lines:
            return None
        storage_of(batch.output).write(parts_prefix(batch) + name, bytes(self._data))
        return Part(name, len(self._data), self._lines)


class Place(NamedTuple):
    """Where a line of the input stands."""

    number: int
    offset: int


class Harvest:
    """What came since the last commit: lines of both files, and what they add to the batch's counts."""

    def __init__(self) -> None:
        self.output = Buffer()
        self.errors = Buffer()
        self.counts = dict.fromkeys(COUNTS, 0)
        #: Their jobs go once these answers are durable.
        self.places: list[Place] = []
        self._since: float | None = None

    def answer(self, line: Line, data: bytes, usage: Usage) -> None:
        """`data`: a line of the output file."""
        self._note(line)
        self.output.add(data)
        self.counts["completed"] += 1
        for name in ("prompt_tokens", "completion_tokens", "cached_tokens"):
            self.counts[name] += getattr(usage, name)

    def fail(self, line: Line | RawLine, data: bytes) -> None:
        """`data`: a line of the error file."""
        self._note(line)
        self.errors.add(data)
        self.counts["failed"] += 1

    @property
    def numbers(self) -> list[int]:
        return [place.number for place in self.places]

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.output) + len(self.errors)

    @property
    def age(self) -> float:
        """Seconds since the first line came; 0 when there is none."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    def _note(self, line: Line | RawLine) -> None:
        self.places.append(Place(line.number, line.offset))
        if self._since is None:
            self._since = time.monotonic()


def remove_part(batch: Batch, name: str) -> None:
    """Of no batch's record. Raises StorageError."""
    storage_of(batch.output).remove(parts_prefix(batch) + name)


def parts_prefix(batch: Batch) -> str:
    return f"{batch.output.rstrip('/')}/{batch.id}.parts/"


def output_url(batch: Batch) -> str:
    return f"{batch.output.rstrip('/')}/{batch.id}_output.jsonl"


def errors_url(batch: Batch) -> str:
    return f"{batch.output.rstrip('/')}/{batch.id}_errors.jsonl"
