"""What `millrace up` looks after, beside what tests of the gateway's commands start whole."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from millrace import up
from millrace.errors import WorkerDied


def test_a_bulk_worker_that_ends_is_noticed(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    popen = up.subprocess.Popen

    def noted(*args, **kwargs):
        process = popen(*args, **kwargs)
        started.append(process.pid)
        return process

    monkeypatch.setattr(up.subprocess, "Popen", noted)
    log = tmp_path / "bulk.log"
    with up._bulk(redis_url, log) as check:
        limit = time.monotonic() + 20
        while "working" not in log.read_text():
            assert time.monotonic() < limit
            time.sleep(0.05)
        check()
        os.kill(started[0], signal.SIGKILL)
        with pytest.raises(WorkerDied, match="ended with code -9") as died:
            until_it_raises(check, limit)
    assert "working" in died.value.log


def until_it_raises(check: Callable[[], None], limit: float) -> None:
    while time.monotonic() < limit:
        check()
        time.sleep(0.05)
