"""What `millrace bulk` hands to RQ."""

from __future__ import annotations

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bulk_parts import Batches
from millrace.bulk.service import BulkService
from millrace.bulk.tasks import Runtime, queue, waiting_beside
from millrace_schemas.keys import BATCHES_DUE


def test_a_batch_has_one_turn_that_waits(redis_url: str, batches: Batches, raw: redis.Redis) -> None:
    """However long it waits: others would be behind all of its turns."""
    first, second = (batches.make("/nowhere/in.jsonl", "/nowhere") for _ in range(2))
    target = queue(raw)
    service = BulkService(Runtime(redis_url))
    for _ in range(3):
        assert service._hand_out()
        raw.zadd(BATCHES_DUE, {first: 0, second: 0})
    assert sorted(name.rpartition("-")[0] for name in target.get_job_ids()) == sorted([first, second])
    # It has begun.
    assert target.pop_job_id() is not None
    assert service._hand_out()
    assert len(target) == 2
    service._stop()


def test_a_turn_goes_on_without_knowing_who_waits() -> None:
    """Redis may be away for a moment."""
    with redis.Redis(port=1, retry=Retry(NoBackoff(), 0)) as nobody:
        assert waiting_beside(queue(nobody), "batch_0") == 0
