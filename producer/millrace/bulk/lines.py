"""Lines of a file of any size: a block in memory at a time, from any line on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .storage import BLOCK, Input

#: Longest line, in bytes. A job has at most MAX_JOB_BYTES; JSON may escape each of them.
MAX_LINE = 16 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class RawLine:
    """`offset` and `length` in bytes, its end included; `data` without it, None when it is longer than MAX_LINE."""

    number: int
    offset: int
    length: int
    data: bytes | None


def read_lines(source: Input, offset: int = 0, number: int = 1, block: int = BLOCK) -> Iterator[RawLine]:
    """Every line from `offset`, where line `number` starts. Raises StorageError, InputChanged."""
    held, start = b"", offset
    at = offset
    too_long = False
    while at < source.size:
        data = source.read(at, block)
        if not data:
            break
        at += len(data)
        held += data
        begin = 0
        while (end := held.find(b"\n", begin)) >= 0:
            length = end + 1 - begin
            if too_long:
                # What came before was dropped, so it is told by where the line started.
                length = at - (len(held) - end - 1) - start
                yield RawLine(number, start, length, None)
                too_long = False
            else:
                yield _line(number, start, length, held[begin:end])
            start += length
            number += 1
            begin = end + 1
        held = b"" if too_long else held[begin:]
        if len(held) > MAX_LINE:
            held, too_long = b"", True
    if too_long:
        yield RawLine(number, start, at - start, None)
    elif held:
        yield _line(number, start, len(held), held)


def _line(number: int, offset: int, length: int, data: bytes) -> RawLine:
    if offset == 0:
        data = data.removeprefix(_BOM)
    return RawLine(number, offset, length, data.removesuffix(b"\r") if len(data) <= MAX_LINE else None)
