"""The directory is the index: its cap, its order of use, and what a killed process leaves in it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from millrace_worker.engine import disk_index
from millrace_worker.engine.disk_index import DirectoryInUse, DiskIndex
from millrace_worker.engine.fingerprint import Identity
from millrace_worker.engine.kv_record import on_disk

IDENTITY = Identity(
    weights="w", config="c", dtype="float32", kv_dtype="float32", layout_version=1, kernels="cpu 1", block_size=4
)
SIZE = 4096


def name(number: int) -> bytes:
    return hashlib.sha256(bytes([number])).digest()


def put(index: DiskIndex, *numbers: int, keep: tuple[int, ...] = ()) -> bool:
    for number in numbers:
        if not index.reserve(SIZE, [name(n) for n in keep]):
            return False
        path = index.path(name(number))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(SIZE))
        index.add(name(number), SIZE)
        assert taken(index) == index.used_bytes <= index.cap_bytes
    return True


def taken(index: DiskIndex) -> int:
    files = index.path(name(0)).parents[3].rglob("*.kv")
    return sum(on_disk(file.stat().st_size) for file in files)


def present(index: DiskIndex, *numbers: int) -> list[int]:
    return [n for n in numbers if index.contains(name(n))]


def test_those_not_used_for_longest_go_first_and_tails_before_heads(tmp_path: Path) -> None:
    index = DiskIndex(tmp_path, IDENTITY, 6 * SIZE)
    put(index, 1, 2, 3, 11, 12, 13)
    index.touch([name(n) for n in (11, 12, 13)])
    index.touch([name(n) for n in (1, 2, 3)])
    gone = []
    for new in range(20, 26):
        before = present(index, 1, 2, 3, 11, 12, 13)
        assert put(index, new)
        gone += [n for n in before if not index.contains(name(n))]
    assert gone == [13, 12, 11, 3, 2, 1]
    index.close()


def test_the_order_of_use_outlives_the_process(tmp_path: Path) -> None:
    index = DiskIndex(tmp_path, IDENTITY, 4 * SIZE)
    put(index, 1, 2, 3, 4)
    index.touch([name(3), name(4)], written={name(3), name(4)})
    index.touch([name(1), name(2)], written={name(1), name(2)})
    index.close()
    index = DiskIndex(tmp_path, IDENTITY, 4 * SIZE)
    assert index.used_bytes == 4 * SIZE
    put(index, 5, 6)
    assert present(index, 1, 2, 3, 4) == [1, 2]
    index.close()


def test_of_a_prompt_written_piece_by_piece_the_next_process_drops_tails_first(tmp_path: Path) -> None:
    index = DiskIndex(tmp_path, IDENTITY, 6 * SIZE)
    chain = [name(n) for n in range(1, 7)]
    for first in (0, 2, 4):
        put(index, first + 1, first + 2)
        index.touch(chain[: first + 2], written=set(chain[first : first + 2]))
    noted = [index.path(block).stat().st_mtime_ns for block in chain]
    assert noted == sorted(noted, reverse=True)
    index.close()
    index = DiskIndex(tmp_path, IDENTITY, 4 * SIZE)
    assert present(index, *range(1, 7)) == [1, 2, 3, 4]
    index.close()


def test_only_what_was_written_is_noted_at_once(tmp_path: Path) -> None:
    index = DiskIndex(tmp_path, IDENTITY, 6 * SIZE)
    put(index, 1, 2)
    before = index.path(name(1)).stat().st_mtime_ns
    index.touch([name(1), name(2)], written={name(2)})
    assert index.path(name(1)).stat().st_mtime_ns == before
    assert index.path(name(2)).stat().st_mtime_ns < before + 10**9
    index.close()


def test_a_cap_that_was_lowered_holds_from_the_start(tmp_path: Path) -> None:
    index = DiskIndex(tmp_path, IDENTITY, 9 * SIZE)
    put(index, *range(9))
    index.close()
    index = DiskIndex(tmp_path, IDENTITY, 2 * SIZE)
    assert taken(index) == index.used_bytes == 2 * SIZE
    assert present(index, *range(9)) == [7, 8]
    index.close()


def test_a_record_that_is_written_over_counts_once(tmp_path: Path) -> None:
    index = DiskIndex(tmp_path, IDENTITY, 9 * SIZE)
    put(index, 1)
    put(index, 1)
    assert index.used_bytes == SIZE
    index.remove(name(1))
    assert index.used_bytes == 0
    index.close()


def test_a_chain_does_not_drop_its_own_heads(tmp_path: Path) -> None:
    index = DiskIndex(tmp_path, IDENTITY, 3 * SIZE)
    assert put(index, 1, 2, 3, keep=(1, 2, 3, 4))
    assert not put(index, 4, keep=(1, 2, 3, 4))
    assert present(index, 1, 2, 3) == [1, 2, 3]
    index.close()


def test_what_was_half_written_is_deleted(tmp_path: Path) -> None:
    index = DiskIndex(tmp_path, IDENTITY, 9 * SIZE)
    put(index, 1)
    half = index.path(name(1)).with_suffix(".tmp77")
    half.write_bytes(b"x" * 100)
    index.close()
    index = DiskIndex(tmp_path, IDENTITY, 9 * SIZE)
    assert not half.exists()
    assert index.num_records == 1
    index.close()


@pytest.mark.parametrize("field", Identity.__struct_fields__)
def test_another_identity_finds_nothing_says_why_and_shares_the_cap(tmp_path: Path, field: str) -> None:
    index = DiskIndex(tmp_path, IDENTITY, 3 * SIZE)
    put(index, 1, 2, 3)
    index.close()
    value = getattr(IDENTITY, field)
    other = msgspec.structs.replace(IDENTITY, **{field: value + 1 if isinstance(value, int) else value + "x"})
    index = DiskIndex(tmp_path, other, 3 * SIZE)
    assert not index.contains(name(1))
    assert index.was_foreign(name(1))
    assert not index.was_foreign(name(4))
    assert index.changed == (field,)
    put(index, 1, 4)
    assert present(index, 1, 4) == [1, 4]
    index.close()
    index = DiskIndex(tmp_path, IDENTITY, 3 * SIZE)
    assert index.changed == ()
    assert present(index, 1, 2, 3) == [3]
    index.close()


def test_two_engines_do_not_share_a_directory(tmp_path: Path) -> None:
    index = DiskIndex(tmp_path, IDENTITY, 3 * SIZE)
    with pytest.raises(DirectoryInUse, match="in use by another worker"):
        DiskIndex(tmp_path, IDENTITY, 3 * SIZE)
    index.close()
    DiskIndex(tmp_path, IDENTITY, 3 * SIZE).close()


def test_protected_records_go_last_and_never_over_the_cap(tmp_path: Path) -> None:
    index = DiskIndex(tmp_path, IDENTITY, 6 * SIZE)
    index.protect([name(n) for n in (1, 2, 9)])
    put(index, 1, 2, 3, 4, 5, 6)
    assert put(index, 7, 8, 9)
    assert present(index, *range(10)) == [1, 2, 6, 7, 8, 9]
    assert put(index, 10, 11, 12, 13)
    # The new ones push each other out; 9 was protected before it came.
    assert present(index, 1, 2, 9) == [1, 2, 9]
    index.protect([name(n) for n in (11, 12, 13)])
    assert index.num_records == 6
    # There are only protected ones left; then 14 is not.
    assert put(index, 14, 15)
    assert present(index, 1, 2, 9, 11, 12, 13, 14, 15) == [2, 9, 11, 12, 13, 15]
    index.unprotect([name(n) for n in (2, 9, 11, 12, 13)])
    assert put(index, 20, 21)
    assert present(index, 2, 9, 11, 12, 13, 15, 20, 21) == [2, 9, 11, 12, 20, 21]
    index.close()


def test_protection_holds_for_what_an_earlier_process_wrote(tmp_path: Path) -> None:
    index = DiskIndex(tmp_path, IDENTITY, 4 * SIZE)
    put(index, 1, 2, 3, 4)
    index.close()
    index = DiskIndex(tmp_path, IDENTITY, 4 * SIZE)
    index.protect([name(1), name(2)])
    assert put(index, 5, 6, 7)
    assert present(index, *range(1, 8)) == [1, 2, 6, 7]
    index.remove(name(1))
    assert not index.contains(name(1))
    assert taken(index) == index.used_bytes == 3 * SIZE
    index.close()


def test_a_chain_that_is_written_keeps_its_own_heads_before_protected_ones(tmp_path: Path) -> None:
    index = DiskIndex(tmp_path, IDENTITY, 3 * SIZE)
    index.protect([name(1), name(2), name(3)])
    put(index, 1, 2)
    assert put(index, 11, 12, 13, keep=(11, 12, 13))
    assert present(index, 1, 2, 11, 12, 13) == [11, 12, 13]
    assert put(index, 1, 2, 3, keep=(1, 2, 3))
    assert not put(index, 11, keep=(1, 2, 3, 11))
    index.close()


def test_a_file_that_vanishes_while_it_is_listed_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody cleans up by hand; a record and one that was half written go."""
    index = DiskIndex(tmp_path, IDENTITY, 6 * SIZE)
    put(index, 1, 2, 3)
    gone, half = index.path(name(2)), index.path(name(1)).with_suffix(".kv.tmp")
    index.close()
    half.touch()
    listed = os.walk

    def walk(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for folder, folders, files in listed(top):
            for path in (gone, half):
                if path.name in files:
                    path.unlink()
            yield folder, folders, files

    monkeypatch.setattr(disk_index.os, "walk", walk)
    index = DiskIndex(tmp_path, IDENTITY, 6 * SIZE)
    assert present(index, 1, 2, 3) == [1, 3]
    assert (index.num_records, index.used_bytes) == (2, 2 * SIZE)
    index.close()
