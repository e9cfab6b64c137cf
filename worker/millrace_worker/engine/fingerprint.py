"""Whose KV it is: everything that decides the bytes of a block besides its tokens, as one digest.

Stored KV is only ever read under the fingerprint that it was written under. What cannot be determined gives no
fingerprint, and then nothing is stored or read.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import torch

from millrace_worker.errors import ModelError
from millrace_worker.fields import read_json_object
from millrace_worker.models.checkpoint import INDEX, Checkpoint

#: To be raised when the kernels, or what a decoder computes with them, put other numbers into the cache than before.
KV_KERNEL_VERSION = 3

#: Fields of config.json that name things and change no number.
_NAMES = {"_name_or_path", "transformers_version"}
#: Files that are read at once; hashing releases the interpreter's lock.
_HASHED_AT_ONCE = 4


class NoFingerprint(Exception):
    """Why it cannot be told whose KV it is, in words for the operator."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a fingerprint. Two engines whose fields are all equal may read each other's blocks."""

    #: Digest of the weights; see `weights_digest` and `dummy_digest`.
    weights: str
    #: Digest of config.json without what only names the model.
    config: str
    #: Of the computation, and of what is stored: "bfloat16".
    dtype: str
    kv_dtype: str
    layout_version: int
    #: "cuda 1": a device's kernels and their version.
    kernels: str
    block_size: int
    #: Devices that share a layer's heads.
    tensor_parallel: int = 1

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 over all fields."""
        return hashlib.sha256(msgspec.json.encode(self)).digest()

    def differs(self, other: Identity) -> tuple[str, ...]:
        """Names of the fields in which `other` is another."""
        return tuple(name for name in self.__struct_fields__ if getattr(self, name) != getattr(other, name))


def config_digest(directory: Path) -> str:
    """Of everything in config.json but names. Raises NoFingerprint."""
    try:
        raw = read_json_object(directory / "config.json")
    except ModelError as e:
        raise NoFingerprint(str(e)) from e
    kept = {name: value for name, value in raw.items() if name not in _NAMES}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def dummy_digest(shapes: dict[str, tuple[int, ...]], seed: int, device: str) -> str:
    """Of weights that are drawn and not read; another device or torch draws others from the same seed."""
    what = {"seed": seed, "shapes": shapes, "device": device, "torch": torch.__version__}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def weights_digest(directory: Path, notes: Path) -> str:
    """Of the checkpoint's index and the contents of its files.

    It takes a second for each gigabyte or two. `notes` is a directory in which the digest is kept beside the files'
    sizes and times, so that it is free while these stay as they are. Raises NoFingerprint.
    """
    try:
        files = [*(file for file in [directory / INDEX] if file.exists()), *Checkpoint(directory).files]
        before = _states(files)
        note = notes / (hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:32] + ".json")
        known = _known(note, before)
        if known is not None:
            return known
        hashes = _hash_files(files)
        if _states(files) != before:
            raise NoFingerprint(f"{directory}: the weights changed while they were read")
    except (OSError, ModelError) as e:
        raise NoFingerprint(f"{directory}: the weights cannot be read: {e}") from e
    named = [[file.name, digest] for file, digest in zip(files, hashes, strict=True)]
    digest = hashlib.sha256(json.dumps(named).encode()).hexdigest()
    with suppress(OSError):  # then the next start reads them again
        notes.mkdir(parents=True, exist_ok=True)
        new = note.with_suffix(f".tmp{os.getpid()}")
        new.write_text(json.dumps({"files": before, "digest": digest}))
        new.replace(note)
    return digest


def _known(note: Path, states: list[list[Any]]) -> str | None:
    try:
        noted = json.loads(note.read_text())
        return str(noted["digest"]) if noted["files"] == states else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _states(files: Iterable[Path]) -> list[list[Any]]:
    """What changes when a file's content does. The change time cannot be set back, unlike the modification time."""
    found = [(file, file.stat()) for file in files]
    return [[str(file.resolve()), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for file, s in found]


def _hash_files(files: list[Path]) -> list[str]:
    """By threads that no process waits for when it ends, unlike an executor's. Raises OSError."""
    todo: queue.SimpleQueue[tuple[int, Path]] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, str | OSError]] = queue.SimpleQueue()
    for item in enumerate(files):
        todo.put(item)

    def run() -> None:
        with suppress(queue.Empty):
            while True:
                number, file = todo.get_nowait()
                try:
                    done.put((number, _hash_file(file)))
                except OSError as e:
                    done.put((number, e))

    for _ in range(min(_HASHED_AT_ONCE, len(files))):
        threading.Thread(target=run, name="weights-digest", daemon=True).start()
    hashes = [""] * len(files)
    for _ in files:
        number, found = done.get()
        if isinstance(found, OSError):
            raise found
        hashes[number] = found
    return hashes


def _hash_file(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
