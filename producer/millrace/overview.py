"""All queues of a Redis at a glance, for the gateway's page and for `millrace top`."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from millrace_schemas import ModelInfo, WorkerInfo

from .async_client import AsyncClient
from .queue_stats import DeadEntry, QueueStats

#: Dead entries of a queue that are of interest at a glance, and characters of a reason.
_DEAD, _REASON = 10, 500


class DeadJob(msgspec.Struct, frozen=True, kw_only=True):
    """A dead entry, without the raw data."""

    model: str
    id: str
    #: When it died, Unix seconds of Redis.
    at: float
    job: str | None
    lane: str | None
    code: str
    reason: str
    attempts: int


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    #: Registered models, by name, and the queue of each.
    models: list[ModelInfo]
    queues: list[QueueStats]
    #: The newest of all queues, newest first.
    dead: list[DeadJob]


async def read_overview(client: AsyncClient) -> Overview:
    """Raises QueueUnavailable."""
    models = await client.models()
    # One after the other: a gateway's streams hold most of the client's connections.
    queues = [await client.queue_stats(model.name) for model in models]
    # The streams of the dead hold raw data, which may be long; they are read only where there is something.
    dead = [
        _dead_job(queue.model, entry)
        for queue in queues
        if queue.dead
        for entry in await client.dead(queue.model, count=_DEAD)
    ]
    dead.sort(key=lambda job: job.at, reverse=True)
    return Overview(models=models, queues=queues, dead=dead[:_DEAD])


class Throughput:
    """Output tokens a second of each worker, from its successive heartbeats.

    Its totals change with a heartbeat only, so a rate lasts until the next one.
    """

    def __init__(self) -> None:
        self._beats: dict[tuple[str, str], tuple[WorkerInfo, float | None]] = {}

    def update(self, workers: Iterable[WorkerInfo]) -> None:
        """Takes all living workers; those that are missing are forgotten."""
        self._beats = {(new.model, new.name): (new, self._rate(new)) for new in workers}

    def of(self, worker: WorkerInfo) -> float | None:
        """None until a second heartbeat was seen."""
        known = self._beats.get((worker.model, worker.name))
        return None if known is None else known[1]

    def _rate(self, new: WorkerInfo) -> float | None:
        known = self._beats.get((new.model, new.name))
        if known is None:
            return None
        old, rate = known
        tokens, seconds = new.output_tokens - old.output_tokens, new.beat_at - old.beat_at
        if seconds == 0:
            return rate
        # A smaller total is that of a worker that was started again under the name.
        return tokens / seconds if seconds > 0 and tokens >= 0 else None


def _dead_job(model: str, entry: DeadEntry) -> DeadJob:
    return DeadJob(
        model=model,
        id=entry.id,
        at=int(entry.id.partition("-")[0]) / 1000,
        job=entry.job,
        lane=entry.lane,
        code=entry.code,
        reason=entry.reason[:_REASON],
        attempts=entry.attempts,
    )
