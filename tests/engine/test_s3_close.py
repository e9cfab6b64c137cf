"""The S3 tier ends whenever it is closed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from copy_parts import BLOCK, BLOCK_BYTES, open_disk
from millrace_worker.engine import s3_tier
from millrace_worker.engine.kv_record import file_bytes
from millrace_worker.engine.s3_mover import Mover
from millrace_worker.engine.s3_tier import S3Tier


def test_closed_just_as_the_disk_has_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no mover yet that could be told of the end."""
    making, closing = threading.Event(), threading.Event()

    class LateMover(Mover):
        def __init__(self, *args: Any, **named: Any) -> None:
            making.set()
            assert closing.wait(10)
            super().__init__(*args, **named)

    monkeypatch.setattr(s3_tier, "Mover", LateMover)
    disk = open_disk(tmp_path)
    tier = S3Tier("s3://bucket/kv", "http://127.0.0.1:9", disk, file_bytes=file_bytes(BLOCK, BLOCK_BYTES))
    join = tier._thread.join

    def close_then_join(timeout: float | None = None) -> None:
        # `close` has looked for a mover by now.
        closing.set()
        join(timeout)

    monkeypatch.setattr(tier._thread, "join", close_then_join)
    tier.start()
    assert making.wait(10)
    disk.close()
    tier.close()
    assert not tier._thread.is_alive()
    assert tier.courier_pid is None
