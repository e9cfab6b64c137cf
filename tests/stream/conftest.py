from __future__ import annotations

import pytest

from queue_probe import QueueProbe


@pytest.fixture
def probe(redis_url: str) -> QueueProbe:
    return QueueProbe(redis_url)
