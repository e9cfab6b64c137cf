"""Where files are: one interface to S3 and to the local disk. All of it blocks; call it in a thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote, urlsplit

from .errors import InputChanged, StorageError

#: Bytes that are read, or joined, at once.
BLOCK = 8 * 1024 * 1024


class Input(Protocol):
    """One version of one file."""

    size: int
    #: Differs from that of every other version.
    version: str

    def read(self, offset: int, length: int) -> bytes:
        """These bytes, fewer only at the end. Raises StorageError, InputChanged when this is another version by now."""
        ...

    def close(self) -> None: ...


class MissingInput:
    """The Input of a file that is not there any more."""

    size, version = 0, ""

    def __init__(self, url: str):
        self._url = url

    def read(self, offset: int, length: int) -> bytes:
        raise InputChanged(f"{self._url} is not there any more")

    def close(self) -> None:
        return


class Storage(Protocol):
    """One kind of place; URLs are of this kind."""

    def open(self, url: str) -> Input:
        """Raises StorageError when there is no such file, or no right to read it."""
        ...

    def write(self, url: str, data: bytes) -> None:
        """Whole or not at all, and durable on return. Raises StorageError."""
        ...

    def join(self, url: str, pieces: Iterator[bytes]) -> int:
        """A file of all pieces, in order; whole or not at all. Returns its bytes. Raises StorageError."""
        ...

    def remove(self, url: str) -> None:
        """What is not there need not be removed. Raises StorageError."""
        ...

    def remove_under(self, prefix: str) -> None:
        """Everything under `prefix`, which ends in "/". Raises StorageError."""
        ...


def storage_of(url: str) -> Storage:
    """Raises StorageError when nothing is known about such URLs."""
    scheme = url.partition("://")[0]
    if scheme == "file":
        from .local_storage import LocalStorage

        return LocalStorage()
    if scheme == "s3":
        from .s3_storage import S3Storage

        return S3Storage.shared()
    raise StorageError(
        f"{url!r} is no place for files; there are s3://bucket/key and file:///path", code="unknown_place", lasting=True
    )


def read_all(url: str) -> Iterator[bytes]:
    """The file in blocks. Raises StorageError, InputChanged."""
    source = storage_of(url).open(url)
    try:
        for offset in range(0, source.size, BLOCK):
            yield source.read(offset, BLOCK)
    finally:
        source.close()


def url_of(place: str) -> str:
    """A URL as it is, a path as one. Raises StorageError on neither."""
    if "://" in place:
        storage_of(place)
        bucket, _, _ = place.removeprefix("s3://").partition("/")
        if not bucket:
            raise StorageError(f"{place!r} names no bucket", code="unknown_place", lasting=True)
        return place
    return "file://" + quote(str(Path(place).absolute()))


def path_of(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))
