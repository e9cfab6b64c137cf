"""Batches as a bulk worker leaves them in Redis, at any point of their lives."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import redis

from millrace_schemas import encode
from millrace_schemas.batch import BATCH_TERMINAL, Batch, BatchStatus
from millrace_schemas.keys import BATCHES_DUE, batch_key, batches_of

_TIMES = {BatchStatus.COMPLETED: "completed_at", BatchStatus.FAILED: "failed_at", BatchStatus.CANCELLED: "cancelled_at"}
_RECORD = frozenset(Batch.__struct_fields__)


def new_batch(batch_id: str, age: float = 0.0, **fields: Any) -> Batch:
    """Made so many seconds ago."""
    made = time.time() - age
    given = {
        "input": "s3://bucket/dir/prompts.jsonl", "output": "s3://bucket/out/", "completion_window": "24h",
        "created_at": made, "expires_at": made + 86400, "model": "demo", **fields,
    }  # fmt: skip
    status = given.get("status", BatchStatus.VALIDATING)
    if status is not BatchStatus.VALIDATING:
        given.setdefault("in_progress_at", made)
    if status in _TIMES:
        given.setdefault(_TIMES[status], made + 1.0)
    return Batch(id=batch_id, **given)


def put(raw: redis.Redis, batch: Batch, **state: Any) -> Batch:
    """Writes it, new or over what was there; `state` is what its hash has beside the record."""
    tenants = {"", batch.tenant}
    with raw.pipeline(transaction=True) as pipe:
        pipe.hset(batch_key(batch.id), mapping={"record": encode(batch), **state})
        for tenant in tenants:
            pipe.zadd(batches_of(tenant), {batch.id: batch.created_at})
        if batch.status in BATCH_TERMINAL:
            pipe.zrem(BATCHES_DUE, batch.id)
        else:
            pipe.zadd(BATCHES_DUE, {batch.id: time.time() + 3600})
        pipe.execute()
    return batch


def moved(raw: redis.Redis, batch: Batch, status: BatchStatus, **fields: Any) -> Batch:
    """`batch` in its next status; `fields` that its record has not are of its hash."""
    state = {name: value for name, value in fields.items() if name not in _RECORD}
    record = {name: value for name, value in fields.items() if name in _RECORD}
    now = time.time()
    if status is BatchStatus.IN_PROGRESS:
        record.setdefault("in_progress_at", now)
    if status in _TIMES:
        record.setdefault(_TIMES[status], now)
    return put(raw, msgspec.structs.replace(batch, status=status, **record), **state)
