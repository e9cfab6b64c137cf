"""Files on this machine."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputChanged, StorageError
from .storage import path_of

_LASTING = {
    errno.ENOENT: "not_found",
    errno.EISDIR: "not_found",
    errno.ENOTDIR: "not_found",
    errno.EACCES: "permission_denied",
    errno.EPERM: "permission_denied",
    errno.EROFS: "permission_denied",
}


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        code = _LASTING.get(e.errno or 0)
        raise StorageError(f"{path}: {e.strerror or e}", code=code or "storage_failed", lasting=code is not None) from e


class LocalInput:
    """An open file; that its name may lead elsewhere by now counts as a change, too."""

    def __init__(self, path: Path):
        self._path = path
        with _translated(path):
            self._file = path.open("rb", buffering=0)
            found = os.fstat(self._file.fileno())
            if not path.is_file():
                self._file.close()
                raise StorageError(f"{path} is no file", code="not_found", lasting=True)
        self.size = found.st_size
        self.version = _version(found)

    def read(self, offset: int, length: int) -> bytes:
        with _translated(self._path):
            data = os.pread(self._file.fileno(), length, offset)
            now = self._path.stat()
        if _version(now) != self.version:
            raise InputChanged(f"{self._path} changed while it was read")
        return data

    def close(self) -> None:
        self._file.close()


class LocalStorage:
    """The Storage of file:// URLs."""

    def open(self, url: str) -> LocalInput:
        return LocalInput(path_of(url))

    def write(self, url: str, data: bytes) -> None:
        self.join(url, iter((data,)))

    def join(self, url: str, pieces: Iterator[bytes]) -> int:
        path = path_of(url)
        size = 0
        with _translated(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            number, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
            try:
                with os.fdopen(number, "wb") as file:
                    for piece in pieces:
                        file.write(piece)
                        size += len(piece)
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).replace(path)
            except BaseException:
                with suppress(OSError):
                    Path(name).unlink()
                raise
            _sync_directory(path.parent)
        return size

    def remove(self, url: str) -> None:
        path = path_of(url)
        with _translated(path):
            path.unlink(missing_ok=True)

    def remove_under(self, prefix: str) -> None:
        path = path_of(prefix)
        with _translated(path):
            if path.exists():
                shutil.rmtree(path)


def _version(found: os.stat_result) -> str:
    return f"{found.st_dev}-{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"


def _sync_directory(path: Path) -> None:
    """A new name is as durable as its directory."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
