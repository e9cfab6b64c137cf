"""Records verify themselves: whatever is wrong with one is found before its payload is used."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from millrace_worker.engine.kv_record import (
    BadRecord,
    BlockName,
    encode_header,
    read_record,
    record_bytes,
    write_record,
)

NAME = BlockName(b"f" * 32, b"c" * 32, b"p" * 32, (5, 6, 7, 70_000))
PAYLOAD = os.urandom(1000)
HEADER = len(encode_header(NAME, memoryview(PAYLOAD)))
#: Where the token ids begin: magic, version, three hashes, count, length, checksum.
TOKENS = 4 + 4 + 96 + 4 + 8 + 4


def write(tmp_path: Path) -> Path:
    path = tmp_path / "record.kv"
    write_record(path, NAME, memoryview(PAYLOAD))
    return path


def read(path: Path, name: BlockName = NAME, size: int = len(PAYLOAD)) -> bytes:
    payload = bytearray(size)
    read_record(path, name, memoryview(payload))
    return bytes(payload)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert read(path) == PAYLOAD
    assert os.listdir(tmp_path) == ["record.kv"]
    assert record_bytes(4, 1000) == 4096 >= path.stat().st_size


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = write(tmp_path)
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 11):
        byte = bit // 8
        data = bytearray(whole)
        data[byte] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(BadRecord) as found:
            read(path)
        wanted = "format" if byte < 8 else "header_checksum" if byte < HEADER else "payload_checksum"
        assert found.value.reason == wanted, bit


@pytest.mark.parametrize("size", [0, 3, TOKENS, HEADER - 1, HEADER, HEADER + len(PAYLOAD) - 1])
def test_a_short_file_is_found(tmp_path: Path, size: int) -> None:
    path = write(tmp_path)
    os.truncate(path, size)
    with pytest.raises(BadRecord, match="short"):
        read(path)


def test_a_long_file_is_found(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(BadRecord, match="length"):
        read(path)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (replace(NAME, fingerprint=b"g" * 32), "fingerprint"),
        (replace(NAME, chain_hash=b"g" * 32), "chain_hash"),
        (replace(NAME, parent_hash=b"g" * 32), "parent"),
        (replace(NAME, tokens=(5, 6, 7, 8)), "tokens"),
    ],
)
def test_a_whole_record_of_something_else_is_found(tmp_path: Path, other: BlockName, reason: str) -> None:
    with pytest.raises(BadRecord, match=reason):
        read(write(tmp_path), other)


def test_a_payload_of_another_size_is_found(tmp_path: Path) -> None:
    with pytest.raises(BadRecord, match="length"):
        read(write(tmp_path), size=999)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path)
    assert os.listdir(tmp_path) == []
