"""A KV block as a file that can tell whether it is whole, and whose it is.

    magic, version | fingerprint | chain hash | parent hash | number of tokens, bytes of payload, payload's checksum
    | token ids (uint32 each) | checksum of all before | payload

Little-endian. The checksums are CRC-32: they are there for bits that flip and writes that tear, at the price of a third
of what a cryptographic one takes; whoever may write into the directory could forge either. Names are SHA-256.
"""

from __future__ import annotations

import os
import struct
import zlib
from array import array
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_MAGIC, _VERSION = b"MRKV", 1
_FIXED = struct.Struct("<4sI32s32s32sIQI")
_SUM = struct.Struct("<I")
#: File systems give out space in pieces of so many bytes.
_PAGE = 4096


class BadRecord(Exception):
    """What was read is not the record asked for; `reason` is a word for a counter."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class BlockName:
    """What a record must say that it is."""

    fingerprint: bytes  # 32 bytes
    chain_hash: bytes  # 32 bytes
    parent_hash: bytes  # 32 bytes
    tokens: tuple[int, ...]


def file_bytes(num_tokens: int, payload_bytes: int) -> int:
    """The length of a block's file."""
    return _header_bytes(num_tokens) + payload_bytes


def record_bytes(num_tokens: int, payload_bytes: int) -> int:
    """What the file of a block takes on a disk."""
    return on_disk(file_bytes(num_tokens, payload_bytes))


def on_disk(size: int) -> int:
    """What a file of so many bytes takes."""
    return -(-size // _PAGE) * _PAGE


def encode_header(name: BlockName, payload: memoryview) -> bytes:
    """The bytes before the payload."""
    fixed = _FIXED.pack(
        _MAGIC,
        _VERSION,
        name.fingerprint,
        name.chain_hash,
        name.parent_hash,
        len(name.tokens),
        payload.nbytes,
        zlib.crc32(payload),
    )
    header = fixed + array("I", name.tokens).tobytes()
    return header + _SUM.pack(zlib.crc32(header))


def write_record(path: Path, name: BlockName, payload: memoryview) -> None:
    """Puts the record at `path`, whole or not at all. Raises OSError.

    The data is not forced onto the disk: a process that dies loses nothing, and what a power failure tears is found
    by its checksum and costs one recomputation.
    """
    temporary = path.with_suffix(f".tmp{os.getpid()}")
    try:
        with open(temporary, "wb", buffering=0) as f:
            _write_all(f.fileno(), memoryview(encode_header(name, payload)))
            _write_all(f.fileno(), payload)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def read_record(path: Path, name: BlockName, payload: memoryview) -> None:
    """Fills `payload` with what the record at `path` holds. Raises BadRecord, or OSError when it cannot be read.

    After a BadRecord `payload` holds anything.
    """
    with open(path, "rb", buffering=0) as f:
        header = f.read(_header_bytes(len(name.tokens)))
        payload_sum = _check_header(header or b"", name, payload.nbytes)
        read = 0
        while read < payload.nbytes:
            count = f.readinto(payload[read:])
            if not count:
                raise BadRecord("short")
            read += count
        if f.read(1):
            raise BadRecord("length")
    if zlib.crc32(payload) != payload_sum:
        raise BadRecord("payload_checksum")


def _check_header(header: bytes, name: BlockName, payload_bytes: int) -> int:
    """The checksum that the payload must have."""
    if len(header) < _header_bytes(len(name.tokens)):
        raise BadRecord("short")
    magic, version, fingerprint, chain_hash, parent, num_tokens, length, payload_sum = _FIXED.unpack_from(header)
    if magic != _MAGIC or version != _VERSION:
        raise BadRecord("format")
    body, (header_sum,) = header[: -_SUM.size], _SUM.unpack(header[-_SUM.size :])
    if num_tokens != len(name.tokens) or zlib.crc32(body) != header_sum:
        raise BadRecord("header_checksum")
    for reason, found, wanted in (
        ("fingerprint", fingerprint, name.fingerprint),
        ("chain_hash", chain_hash, name.chain_hash),
        ("parent", parent, name.parent_hash),
        ("tokens", body[_FIXED.size :], array("I", name.tokens).tobytes()),
        ("length", length, payload_bytes),
    ):
        if found != wanted:
            raise BadRecord(reason)
    return int(payload_sum)


def _header_bytes(num_tokens: int) -> int:
    return _FIXED.size + 4 * num_tokens + _SUM.size


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
