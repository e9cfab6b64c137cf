"""What `millrace bulk` logs of batches: a line when something begins, waits or ends. Nothing that stands in a file."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from millrace_schemas.batch import Batch, BatchProgress, BatchStatus
from millrace_schemas.trace_context import trace_id_of

log = structlog.get_logger(__name__)


def batch_taken(batch: Batch, shard: int | None = None) -> None:
    """A turn of work begins, on the batch as a whole or on one of its shards. At level debug: there are many."""
    log.debug("batch taken", **_fields(batch, shard), status=str(batch.status))


def batch_began(batch: Batch) -> None:
    """Its file was looked through, and its requests become jobs from now on."""
    log.info(
        "batch began", **_fields(batch), endpoint=batch.endpoint, total=batch.total, bytes=batch.size,
        shards=len(batch.shards),
    )  # fmt: skip


def batch_ended(batch: Batch, counts: BatchProgress | Mapping[str, int]) -> None:
    """`batch` as it ended. Of a failed one the codes and lines: the words of its errors may quote the file."""
    if isinstance(counts, BatchProgress):
        counts = {name: getattr(counts, name) for name in _COUNTS}
    fields: dict[str, Any] = {**_fields(batch), "status": str(batch.status), "total": batch.total}
    fields |= {name: counts.get(name, 0) for name in _COUNTS}
    ended_at = getattr(batch, f"{batch.status}_at")
    if ended_at is not None:
        fields["seconds"] = round(ended_at - batch.created_at, 3)
    if batch.errors:
        fields["errors"] = [_code(error.code, error.line) for error in batch.errors[:_NAMED]]
    say = log.warning if batch.status in (BatchStatus.FAILED, BatchStatus.EXPIRED) else log.info
    say("batch ended", **fields)


def batch_waits(batch: Batch | str, problem: str) -> None:
    """It cannot go on now, and is tried again. `problem` is that of its record: a place that cannot be used, and why.

    Call it when the problem is a new one: the same is met every few seconds.
    """
    log.warning("batch waits", **_fields(batch), problem=problem[:_LONGEST])


def batch_cancelled(batch: Batch) -> None:
    """Somebody asked for its end; what is under way ends first."""
    log.info("batch is cancelled", **_fields(batch))


def shard_ended(batch: Batch, shard: int) -> None:
    """All of its lines have ended."""
    log.info("shard ended", **_fields(batch, shard))


def parts_left(batch: Batch, problem: str) -> None:
    """All is well with the batch, but what was joined into its files could not be removed yet."""
    log.warning("parts left", **_fields(batch), problem=problem[:_LONGEST])


def shard_lost(batch: Batch | str, shard: int | None = None) -> None:
    """Another process has it, as this one did not renew its lease in time; nothing more is written here."""
    log.warning("shard lost", **_fields(batch, shard))


def turn_failed(batch_id: str, error: BaseException) -> None:
    """What nobody foresaw: its kind and where it was, innermost first. Its words may quote the file."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    where = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames)]
    log.error("turn failed", batch=batch_id, error=type(error).__name__, where=where)


def redis_away(why: str) -> None:
    """The service cannot hand out batches, and goes on trying."""
    log.warning("no Redis", problem=why[:_LONGEST])


_COUNTS = ("completed", "failed", "prompt_tokens", "completion_tokens", "cached_tokens")
_NAMED, _LONGEST, _FRAMES = 10, 500, 12


def _fields(batch: Batch | str, shard: int | None = None) -> dict[str, Any]:
    """Which batch, whose, and in which trace; of a batch that is not read yet its id alone."""
    fields: dict[str, Any] = {"batch": batch if isinstance(batch, str) else batch.id}
    if shard is not None:
        fields["shard"] = shard
    if isinstance(batch, Batch):
        if batch.model:
            fields["model"] = batch.model
        if batch.tenant:
            fields["tenant"] = batch.tenant
        if batch.traceparent is not None:
            fields["trace_id"] = trace_id_of(batch.traceparent)
    return fields


def _code(code: str, line: int | None) -> str:
    return code if line is None else f"{code} (line {line})"
