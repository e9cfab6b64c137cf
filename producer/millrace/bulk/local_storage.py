"""Files on this machine."""

from __future__ import annotations

import errno
import os
import shutil
import stat
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
    errno.EEXIST: "not_found",
    errno.ENAMETOOLONG: "not_found",
    errno.ELOOP: "not_found",
    errno.ENXIO: "not_found",
    errno.EACCES: "permission_denied",
    errno.EPERM: "permission_denied",
    errno.EROFS: "permission_denied",
}

_UNFINISHED = ".part"


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        code = _LASTING.get(e.errno or 0)
        raise StorageError(f"{path}: {e.strerror or e}", code=code or "storage_failed", lasting=code is not None) from e
    except ValueError as e:
        # A name that no file can have.
        raise StorageError(f"{str(path)!r}: {e}", code="not_found", lasting=True) from e


class LocalInput:
    """An open file; that its name may lead elsewhere by now counts as a change, too."""

    def __init__(self, path: Path):
        self._path = path
        with _translated(path):
            # A pipe that nobody writes to would otherwise be waited for.
            number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            found = os.fstat(number)
            if not stat.S_ISREG(found.st_mode):
                os.close(number)
                raise StorageError(f"{path} is no file", code="not_found", lasting=True)
            self._file = os.fdopen(number, "rb", buffering=0)
        self.size = found.st_size
        self.version = _version(found)

    def read(self, offset: int, length: int) -> bytes:
        with _translated(self._path):
            data = os.pread(self._file.fileno(), length, offset)
            now = self._path.stat()
        if _version(now) != self.version:
            raise InputChanged(f"{self._path} changed while it was read")
        if len(data) < min(length, self.size - offset):
            raise StorageError(f"{self._path}: only {len(data):,} of {length:,} bytes could be read at {offset:,}")
        return data

    def close(self) -> None:
        self._file.close()


class LocalStorage:
    """The Storage of file:// URLs."""

    def open(self, url: str) -> LocalInput:
        return LocalInput(path_of(url))

    def write(self, url: str, data: bytes) -> None:
        path = path_of(url)
        with _translated(path):
            _write(path, iter((data,)))

    def join(self, url: str, pieces: Iterator[bytes]) -> int:
        path = path_of(url)
        with _translated(path):
            size = _write(path, pieces)
            _remove_unfinished(path)
        return size

    def remove(self, url: str) -> None:
        path = path_of(url)
        with _translated(path):
            path.unlink(missing_ok=True)
            if path.parent.exists():
                _remove_unfinished(path)

    def remove_under(self, prefix: str) -> None:
        path = path_of(prefix)
        with _translated(path):
            # Whoever else removes it, or did, is welcome to.
            while path.exists():
                with suppress(FileNotFoundError):
                    shutil.rmtree(path)


def _write(path: Path, pieces: Iterator[bytes]) -> int:
    """A file of all pieces, durable on return; its bytes."""
    size = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_UNFINISHED, dir=path.parent)
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


def _remove_unfinished(path: Path) -> None:
    """What processes that died had begun to make into this file."""
    with os.scandir(path.parent) as found:
        names = [entry.name for entry in found]
    for name in names:
        if name.startswith(f".{path.name}.") and name.endswith(_UNFINISHED):
            with suppress(FileNotFoundError):
                (path.parent / name).unlink()


def _version(found: os.stat_result) -> str:
    # Without the device: a share has another number on every machine, and after every mount.
    return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"


def _sync_directory(path: Path) -> None:
    """A new name is as durable as its directory."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
