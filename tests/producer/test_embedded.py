from __future__ import annotations

from pathlib import Path

import pytest

from millrace.embedded import EmbeddedRedis
from millrace_schemas import QueueUnavailable


def test_a_port_that_another_server_has_is_not_taken_for_ours(redis_server: EmbeddedRedis, tmp_path: Path) -> None:
    second = EmbeddedRedis(tmp_path, port=redis_server.port)
    with pytest.raises(QueueUnavailable, match=f"did not start: Failed listening on port {redis_server.port}"):
        second.start()
    assert second.pid is None
