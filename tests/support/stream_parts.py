"""The stream half of one worker, put together for tests of its parts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import redis.asyncio

from millrace_schemas import Choice, FinishReason, JobState, Result
from millrace_worker.config import StreamConfig
from millrace_worker.stream.closing import Ending
from millrace_worker.stream.connection import connect, connect_blocking
from millrace_worker.stream.consumer import JobConsumer
from millrace_worker.stream.lease import Lease, LeasedJob, LeaseTable
from millrace_worker.stream.objects import ObjectStore
from millrace_worker.stream.progress import Progress
from millrace_worker.stream.publisher import Publisher
from millrace_worker.stream.reclaim import Reclaimer
from queue_probe import QueueProbe

_CONFIG = StreamConfig(lease=1.0, max_attempts=3, checkpoint_tokens=1, checkpoint_interval=0.01)


@dataclass
class Parts:
    probe: QueueProbe
    client: redis.asyncio.Redis
    blocking: redis.asyncio.Redis
    name: str = "w1"
    config: StreamConfig = _CONFIG
    leases: LeaseTable = field(default_factory=LeaseTable)
    taken: list[LeasedJob] = field(default_factory=list)
    lost: list[Lease] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.consumer = JobConsumer(
            self.client, self.blocking, self.probe.keys, self.name, self.leases, self.config.max_attempts, 0.05,
            self.taken.append,
        )  # fmt: skip
        self.reclaimer = Reclaimer(self.client, self.probe.keys, self.consumer, self.leases, self.config.lease)
        self.publisher = Publisher(
            self.client, self.probe.keys, self.name, self.leases, ObjectStore(), self.config, self.lost.append
        )

    def other(self, name: str = "w2") -> Parts:
        return Parts(self.probe, self.client, self.blocking, name, self.config)

    async def lease_one(self) -> LeasedJob:
        before = len(self.taken)
        assert await self.consumer.next(1, wait=False) == 1
        return self.taken[before]


def with_parts(url: str, body: Callable[[Parts], Awaitable[None]], **settings: Any) -> None:
    """Runs `body` with the parts of a worker on the Redis at `url`."""

    async def run() -> None:
        client, blocking = connect(url), connect_blocking(url, 0.05)
        parts = Parts(QueueProbe(url), client, blocking, **settings)
        await parts.consumer.ensure_group()
        try:
            await body(parts)
        finally:
            await client.aclose()
            await blocking.aclose()

    asyncio.run(run())


def result_of(leased: LeasedJob, state: JobState = JobState.COMPLETED) -> Result:
    choices = (Choice(0, "text", (1, 2), FinishReason.STOP),) if state is JobState.COMPLETED else ()
    return Result(id=leased.lease.job_id, model="letters", state=state, choices=choices, attempts=leased.lease.attempt)


def ending_of(leased: LeasedJob, state: JobState = JobState.COMPLETED, progress: Progress | None = None) -> Ending:
    return Ending(leased.lease, result_of(leased, state), progress)
