"""The last ten minutes of every queue, for the plots of the page. Looked at by the gateway, and kept nowhere else."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from millrace import AsyncClient, QueueStats, WorkerInfo
from millrace.bulk.glance import Paces
from millrace.overview import Overview, Throughput, read_overview
from millrace_schemas import Lane, Latencies, MillraceError, percentile

#: Seconds that are remembered.
WINDOW = 600.0
#: Seconds before a point whose jobs make its percentiles: five alone hold few.
SPREAD = 30.0
#: Seconds that one look at Redis may take.
_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds that half of the jobs, and 95 % of them, did not exceed; None: there was no job."""

    half: float | None
    most: float | None


@dataclass(frozen=True, slots=True)
class Lately:
    """Completed jobs of a lane, by latency."""

    first_token: Counter[int]
    total: Counter[int]


@dataclass(frozen=True, slots=True)
class Point:
    """A queue at one time, Unix seconds of Redis."""

    at: float
    waiting: Mapping[Lane, int]
    #: Output tokens a second of all workers; None until two heartbeats of one were seen.
    tokens: float | None
    #: What was completed since the point before.
    ended: Mapping[Lane, Lately]
    #: Of the jobs that ended in the SPREAD seconds up to here.
    first_token: Mapping[Lane, Spread]
    total: Mapping[Lane, Spread]


class History:
    """Points of all models, oldest first. `watch` adds them; whoever renders only reads."""

    def __init__(self) -> None:
        self.throughput = Throughput()
        self.paces = Paces()
        self._points: dict[str, deque[Point]] = {}
        #: Latencies of a worker as last told, by its model and name.
        self._told: dict[tuple[str, str], Mapping[Lane, Latencies]] = {}

    def of(self, model: str) -> Sequence[Point]:
        return tuple(self._points.get(model, ()))

    async def watch(self, client: AsyncClient, every: float) -> None:
        """Looks every `every` seconds until cancelled; an outage is a gap."""
        while True:
            try:
                async with asyncio.timeout(_PATIENCE):
                    self.record(await read_overview(client, self.paces))
            except (MillraceError, TimeoutError):
                # The page says so itself when somebody looks.
                pass
            await asyncio.sleep(every)

    def record(self, overview: Overview) -> None:
        workers = [worker for queue in overview.queues for worker in queue.workers]
        self.throughput.update(workers)
        for queue in overview.queues:
            points = self._points.setdefault(queue.model, deque())
            points.append(self._point(queue, points))
        self._told = {_key(worker): worker.latencies for worker in workers}
        now = max((queue.at for queue in overview.queues), default=None)
        if now is not None:
            self._forget(now - WINDOW)

    def _forget(self, before: float) -> None:
        for model, points in list(self._points.items()):
            while points and points[0].at < before:
                points.popleft()
            if not points:
                del self._points[model]

    def _point(self, queue: QueueStats, points: Sequence[Point]) -> Point:
        ended = {lane: self._ended(lane, queue.workers) for lane in queue.lanes}
        recent = [point.ended for point in points if point.at > queue.at - SPREAD] + [ended]
        rates = [rate for worker in queue.workers if (rate := self.throughput.of(worker)) is not None]
        return Point(
            at=queue.at,
            waiting={lane: numbers.waiting for lane, numbers in queue.lanes.items()},
            tokens=sum(rates) if rates or not queue.workers else None,
            ended=ended,
            first_token={lane: spread_of(of[lane].first_token for of in recent if lane in of) for lane in ended},
            total={lane: spread_of(of[lane].total for of in recent if lane in of) for lane in ended},
        )

    def _ended(self, lane: Lane, workers: Sequence[WorkerInfo]) -> Lately:
        """What these workers completed since they were last seen; a worker begins to count when it is seen again."""
        lately = Lately(Counter(), Counter())
        nothing = Latencies()
        for worker in workers:
            old = self._told.get(_key(worker))
            if old is not None:
                new, before = worker.latencies.get(lane, nothing), old.get(lane, nothing)
                lately.first_token.update(Counter(new.first_token) - Counter(before.first_token))
                lately.total.update(Counter(new.total) - Counter(before.total))
        return lately


def spread_of(counts: Iterable[Counter[int]]) -> Spread:
    together: Counter[int] = Counter()
    for one in counts:
        together.update(one)
    return Spread(percentile(together, 0.5), percentile(together, 0.95))


def _key(worker: WorkerInfo) -> tuple[str, str]:
    return worker.model, worker.name
