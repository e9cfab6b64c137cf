"""Answers on their way to a durable part."""

from __future__ import annotations

import time

from millrace_schemas.batch import Batch, Part

from .storage import storage_of


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


class Outputs:
    """Both buffers, and since when there is something in them."""

    def __init__(self) -> None:
        self.output = Buffer()
        self.errors = Buffer()
        self._since: float | None = None

    def add(self, line: bytes, *, answered: bool) -> None:
        (self.output if answered else self.errors).add(line)
        if self._since is None:
            self._since = time.monotonic()

    @property
    def size(self) -> int:
        return len(self.output) + len(self.errors)

    @property
    def age(self) -> float:
        """Seconds since the first line came; 0 when there is none."""
        return 0.0 if self._since is None else time.monotonic() - self._since


def remove_part(batch: Batch, name: str) -> None:
    """Of no batch's record. Raises StorageError."""
    storage_of(batch.output).remove(parts_prefix(batch) + name)


def parts_prefix(batch: Batch) -> str:
    return f"{batch.output.rstrip('/')}/{batch.id}.parts/"


def output_url(batch: Batch) -> str:
    return f"{batch.output.rstrip('/')}/{batch.id}_output.jsonl"


def errors_url(batch: Batch) -> str:
    return f"{batch.output.rstrip('/')}/{batch.id}_errors.jsonl"
