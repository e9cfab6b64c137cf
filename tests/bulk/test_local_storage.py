"""Files on a disk that several machines share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from millrace.bulk import local_storage
from millrace.bulk.local_storage import LocalInput


def test_a_file_is_the_same_wherever_its_share_is_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("one\n")
    here = LocalInput(path)
    fstat = os.fstat

    def elsewhere(number: int) -> os.stat_result:
        found = fstat(number)
        device = found.st_dev + 1
        return os.stat_result((*found[:2], device, *found[3:]), {"st_mtime_ns": found.st_mtime_ns})

    monkeypatch.setattr(local_storage.os, "fstat", elsewhere)
    there = LocalInput(path)
    path.write_text("other\n")
    changed = LocalInput(path)
    for source in (here, there, changed):
        source.close()
    assert there.version == here.version != changed.version
