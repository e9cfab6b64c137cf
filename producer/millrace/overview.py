"""All queues of a Redis at a glance, for the gateway's page and for `millrace top`."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from millrace_schemas import ModelInfo, WorkerInfo

from .async_client import AsyncClient
from .bulk.glance import BulkFiles, Paces, read_batches
from .bulk.store import BatchStore
from .queue_stats import Failure, QueueStats

#: Failures that are of interest at a glance.
_FAILURES = 10


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    #: Registered models, by name, and the queue of each.
    models: list[ModelInfo]
    queues: list[QueueStats]
    #: The newest of all queues, newest first.
    failures: list[Failure]
    bulk: BulkFiles = BulkFiles()


async def read_overview(client: AsyncClient, paces: Paces) -> Overview:
    """`paces` has seen earlier overviews, and sees this one. Raises QueueUnavailable."""
    models = await client.models()
    # One after the other: a gateway's streams hold most of the client's connections.
    queues = [await client.queue_stats(model.name) for model in models]
    failures = [failure for model in models for failure in await client.failures(model.name, count=_FAILURES)]
    failures.sort(key=lambda failure: failure.at, reverse=True)
    # Queues in memory have no bulk files beside them.
    connection = client._connection
    bulk = BulkFiles() if connection is None else await read_batches(BatchStore(connection), paces)
    return Overview(models=models, queues=queues, failures=failures[:_FAILURES], bulk=bulk)


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
