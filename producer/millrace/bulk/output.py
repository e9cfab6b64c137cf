"""Answers on their way to a durable part."""

from __future__ import annotations

import time

from millrace_schemas import Usage
from millrace_schemas.batch import Batch, Part

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


class Harvest:
    """What came since the last commit: lines of both files, what they add to the batch's counts, and their numbers."""

    def __init__(self) -> None:
        self.output = Buffer()
        self.errors = Buffer()
        self.counts = dict.fromkeys(COUNTS, 0)
        #: Their jobs go once the lines are durable.
        self.numbers: list[int] = []
        self._since: float | None = None

    def answer(self, number: int, line: bytes, usage: Usage) -> None:
        """Of the line with this number in the input."""
        self._note(number)
        self.output.add(line)
        self.counts["completed"] += 1
        for name in ("prompt_tokens", "completion_tokens", "cached_tokens"):
            self.counts[name] += getattr(usage, name)

    def fail(self, number: int, line: bytes) -> None:
        self._note(number)
        self.errors.add(line)
        self.counts["failed"] += 1

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.output) + len(self.errors)

    @property
    def age(self) -> float:
        """Seconds since the first line came; 0 when there is none."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    def _note(self, number: int) -> None:
        self.numbers.append(number)
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
