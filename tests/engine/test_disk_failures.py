"""A disk that is full, slow, dead or torn costs a recomputation, never a step or an answer."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from disk_parts import BLOCK, PROMPTS, SHARED, SYSTEM, ask, disk_config, ids, race, records, taken
from millrace_worker.engine import disk_readers, disk_tier
from millrace_worker.engine.disk_requests import Reading, TierLimits
from millrace_worker.engine.disk_tier import DiskTier
from millrace_worker.engine.engine import Engine
from millrace_worker.engine.kv_record import write_record

#: Prompts without a common beginning.
MANY = [ids(60 + n, 50 + n) for n in range(24)]


@pytest.fixture
def stored(model: Path, tmp_path: Path) -> Path:
    engine = Engine(disk_config(model, tmp_path / "cache"))
    ask(engine, PROMPTS)
    engine.close()
    assert len(records(tmp_path / "cache")) == SHARED
    return tmp_path / "cache"


def hurry(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    monkeypatch.setattr(disk_tier, "TierLimits", partial(TierLimits, **seconds))


def test_the_cap_holds_at_all_times(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cap = 60 * 8192
    most = [0]

    def write(*arguments: object) -> None:
        write_record(*arguments)  # type: ignore[arg-type]
        most[0] = max(most[0], taken(tmp_path))  # in the one thread that writes and deletes

    monkeypatch.setattr(disk_tier, "write_record", write)
    engine = Engine(disk_config(model, tmp_path, disk_cache_gb=cap / 1e9))
    for _ in range(2):
        ask(engine, MANY)
    engine.close()
    assert 0 < most[0] <= cap
    assert 0 < taken(tmp_path) <= cap
    assert engine.cache_stats.written_blocks > engine.cache_stats.disk_blocks
    assert engine.cache_stats.disk_bytes <= cap


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    directory = tmp_path / "small"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def test_a_full_disk_stops_the_writing_and_nothing_else(model: Path, small_disk: Path) -> None:
    with capture_logs() as logged:
        engine = Engine(disk_config(model, small_disk, blocks=1000))
        first = ask(engine, MANY)
        assert ask(engine, MANY) == first
        engine.close()
    paused = [line for line in logged if line["event"] == "the disk cache takes nothing for a while"]
    assert {line["directory"] for line in paused} == {str(small_disk)}
    stats = engine.cache_stats
    assert 0 < stats.written_blocks < 24 * 15
    assert stats.unwritten["disk_error"] > 0
    assert not list(small_disk.rglob("*.tmp*"))
    engine = Engine(disk_config(model, small_disk, blocks=1000))
    assert ask(engine, MANY) == first
    assert engine.cache_stats.disk_hit_tokens > 0
    engine.close()


def test_a_write_error_stops_the_writing_and_nothing_else(
    model: Path, cold: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk_tier, "write_record", full)
    engine = Engine(disk_config(model, tmp_path))
    assert ask(engine, PROMPTS) == cold
    assert ask(engine, PROMPTS) == cold
    engine.close()
    assert engine.cache_stats.written_blocks == engine.cache_stats.disk_bytes == 0
    assert engine.cache_stats.unwritten["disk_error"] == SHARED


def test_a_read_that_hangs_is_given_up_and_others_go_on_meanwhile(
    model: Path, cold: list[list[int]], stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch, read_seconds=0.5)
    for path in records(stored):
        path.unlink()
        os.mkfifo(path)  # opening it waits for somebody who writes
    engine = Engine(disk_config(model, stored))
    ended, answers = race(engine, [PROMPTS[0], MANY[0]])
    assert ended == [1, 0]
    assert answers[0] == cold[0]
    assert engine.cache_stats.misses == {"deadline": 1, "absent": 1}
    assert "disk" in engine.scheduler.tier.costs.bytes_per_second  # type: ignore[attr-defined]
    # For a while nobody waits for this disk again.
    engine.reset_prefix_cache()
    assert ask(engine, PROMPTS) == cold
    assert engine.cache_stats.misses["paused"] > 0
    assert engine.cache_stats.misses["deadline"] == 1
    for path in stored.glob("*/*/*/*.kv"):
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            continue  # nobody reads it
    engine.close()


def test_a_slow_disk_is_tried_with_a_few_blocks_for_no_longer_than_computing_takes(
    model: Path, cold: list[list[int]], stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, asked, plain = threading.Event(), [0], disk_readers.read_record

    def slow(*arguments: object) -> None:
        asked[0] += 1
        go_on.wait(30)
        plain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(disk_readers, "read_record", slow)
    engine = Engine(disk_config(model, stored))
    costs = engine.scheduler.tier.costs  # type: ignore[attr-defined]
    costs.bytes_per_second["disk"], costs.tokens_per_second = 1000.0, 10_000.0
    for number in range(64):
        engine.reset_prefix_cache()
        costs.tokens_per_second = 10_000.0
        assert ask(engine, PROMPTS[:1]) == cold[:1]
        assert engine.cache_stats.loads == ({} if number < 63 else {"disk": 1})
    assert 0 < asked[0] <= 8
    assert engine.cache_stats.recomputes == {"disk": 63}
    assert engine.cache_stats.misses == {"slower": 63, "deadline": 1}
    # Nothing was to be expected of it, so it is not left alone for that.
    assert engine.scheduler.tier._disk.may_read  # type: ignore[attr-defined]
    go_on.set()
    engine.close()


def test_several_that_waited_for_a_dead_disk_are_one_reason_to_leave_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = TierLimits(read_pause=0.05, most_read_pause=0.2)
    tier = DiskTier(tmp_path, 1, block_size=4, block_bytes=8, new_buffer=lambda: torch.empty(8), limits=limits)
    pauses: list[float] = []
    monkeypatch.setattr(disk_readers.log, "warning", lambda _, seconds: pauses.append(seconds))
    for _ in range(4):
        for _ in range(3):
            tier.give_up(Reading([]))
        assert not tier.may_read
        while not tier.may_read:
            time.sleep(0.01)
    assert pauses == [0.05, 0.1, 0.2, 0.2]


def test_the_head_that_was_read_in_time_is_kept(
    model: Path, cold: list[list[int]], stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch, read_seconds=0.5)
    go_on, read, plain = threading.Event(), [0], disk_readers.read_record

    def slow(*arguments: object) -> None:
        read[0] += 1
        if read[0] > 4:
            go_on.wait(30)
        plain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(disk_readers, "read_record", slow)
    monkeypatch.setattr(disk_readers, "_READERS", 1)
    engine = Engine(disk_config(model, stored))
    assert ask(engine, PROMPTS[:1]) == cold[:1]
    assert engine.cache_stats.disk_hit_tokens == 4 * BLOCK
    go_on.set()
    engine.close()


def test_writes_that_hang_are_dropped(
    model: Path, cold: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch, read_seconds=0.2, close_seconds=0.2, most_written_bytes=12 * 8192)
    go_on = threading.Event()
    monkeypatch.setattr(disk_tier, "write_record", lambda *a: go_on.wait(30) and write_record(*a))
    engine = Engine(disk_config(model, tmp_path))
    for _ in range(2):
        assert ask(engine, PROMPTS) == cold
        ask(engine, MANY)
    assert engine.cache_stats.unwritten["busy"] > 0
    assert not list(engine.scheduler.tier.held)
    engine.close()
    go_on.set()


def test_a_directory_that_hangs_does_not_stop_the_start(
    model: Path, cold: list[list[int]], stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch, open_seconds=0.2)
    go_on, plain = threading.Event(), disk_tier.DiskIndex
    monkeypatch.setattr(disk_tier, "DiskIndex", lambda *a: go_on.wait(30) and plain(*a))
    engine = Engine(disk_config(model, stored))
    assert ask(engine, PROMPTS) == cold
    assert engine.cache_stats.misses["closed"] > 0
    go_on.set()
    while engine.cache_stats.disk_blocks == 0:
        time.sleep(0.01)
    engine.reset_prefix_cache()
    assert ask(engine, PROMPTS) == cold
    assert engine.cache_stats.disk_hit_tokens == len(SYSTEM)
    engine.close()


def test_a_directory_that_cannot_be_used_is_none(model: Path, cold: list[list[int]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with capture_logs() as logged:
        engine = Engine(disk_config(model, tmp_path / "file"))
        assert ask(engine, PROMPTS) == cold
        assert engine.cache_stats.open == {"disk": 0}
        engine.close()
    (line,) = (line for line in logged if line["event"] == "no disk cache")
    assert line["directory"] == str(tmp_path / "file")
    assert "--disk-cache-dir has to be a directory that this worker may write to" in line["reason"]
