"""/metrics, in Prometheus' text format: this process's requests, and the queues as they are right now."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from millrace import AsyncClient, QueueStats
from millrace_schemas import MillraceError
from millrace_schemas.exposition import CONTENT_TYPE, Family, Histogram, one, render

from .caller import client_of
from .metrics_batches import describe_batches, read_batches
from .sse import StreamSlots
from .webhook_dispatcher import Dispatcher

#: Seconds that a scrape waits for Redis.
_PATIENCE = 5.0
#: Upper ends of buckets for the duration of requests, in seconds: up to the longest answer that is waited for.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class RequestCounts:
    """Requests that were answered, by method, route and status, and how long that took by method and route."""

    def __init__(self) -> None:
        self.by_label: Counter[tuple[str, str, int]] = Counter()
        self.seconds: dict[tuple[str, str], Histogram] = {}

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """`route` is a pattern, so that ids make no labels."""
        self.by_label[method, route, status] += 1
        histogram = self.seconds.get((method, route))
        if histogram is None:
            histogram = self.seconds[method, route] = Histogram(_SECONDS)
        histogram.observe(seconds)


async def metrics(request: Request) -> Response:
    state = request.app.state
    queues, batches = await asyncio.gather(
        _queues(client_of(request)), read_batches(state.client._connection, _PATIENCE)
    )
    families = [
        *_requests(state.counts, state.slots, state.connections.open),
        *_webhooks(state.dispatcher),
        one("millrace_redis_up", "gauge", "1 while Redis answers this gateway.", int(queues is not None)),
        *_describe(queues or []),
        *describe_batches(batches),
    ]
    return Response(render(families), media_type=CONTENT_TYPE)


def _requests(counts: RequestCounts, slots: StreamSlots, connections: int) -> Iterator[Family]:
    yield Family(
        "millrace_gateway_requests_total",
        "counter",
        "Requests answered, by pattern of the route; 499: the client left before the answer.",
        [
            ({"method": method, "route": route, "status": status}, number)
            for (method, route, status), number in sorted(counts.by_label.items())
        ],
    )
    yield Family(
        "millrace_gateway_request_duration_seconds",
        "histogram",
        "From a request's head to the end of its answer, that of a stream included.",
        [
            ({"method": method, "route": route}, histogram)
            for (method, route), histogram in sorted(counts.seconds.items())
        ],
    )
    yield one("millrace_gateway_streams", "gauge", "Event streams that are open.", slots.used)
    yield one("millrace_gateway_connections", "gauge", "Clients' connections, idle ones included.", connections)


def _webhooks(dispatcher: Dispatcher | None) -> Iterator[Family]:
    if dispatcher is None:
        return
    yield Family(
        "millrace_gateway_webhooks_total",
        "counter",
        "Calls of webhooks by this gateway, by how they ended.",
        [({"outcome": outcome}, number) for outcome, number in sorted(dispatcher.counts.items())],
    )
    yield Family(
        "millrace_webhooks_waiting",
        "gauge",
        "Webhooks that are still to be called, by any gateway.",
        [({"queue": queue}, number) for queue, number in sorted(dispatcher.waiting.items())],
    )


async def _queues(client: AsyncClient) -> list[QueueStats] | None:
    """None without Redis: the gateway's own numbers are wanted then more than ever."""
    try:
        async with asyncio.timeout(_PATIENCE):
            return [await client.queue_stats(info.name) for info in await client.models()]
    except (MillraceError, TimeoutError):
        return None


def _describe(queues: list[QueueStats]) -> Iterator[Family]:
    """Each gateway tells the same of them: take the maximum over gateways, not the sum."""
    lanes = [
        ({"model": queue.model, "lane": lane}, numbers) for queue in queues for lane, numbers in queue.lanes.items()
    ]
    yield Family(
        "millrace_queue_waiting",
        "gauge",
        "Jobs that no worker has read: the consumer group's lag.",
        [(labels, numbers.waiting) for labels, numbers in lanes],
    )
    yield Family(
        "millrace_queue_in_flight",
        "gauge",
        "Jobs that workers hold: the consumer group's pending entries.",
        [(labels, numbers.in_flight) for labels, numbers in lanes],
    )
    yield Family(
        "millrace_queue_oldest_waiting_seconds",
        "gauge",
        "Age of the oldest job that no worker has read; 0 when there is none.",
        [(labels, numbers.oldest_waiting or 0) for labels, numbers in lanes],
    )
    models = [({"model": queue.model}, queue) for queue in queues]
    yield Family(
        "millrace_queue_delayed",
        "gauge",
        "Jobs that wait for their next attempt.",
        [(labels, queue.delayed) for labels, queue in models],
    )
    yield Family(
        "millrace_queue_dead",
        "gauge",
        "Entries of the dead stream.",
        [(labels, queue.dead) for labels, queue in models],
    )
    yield Family(
        "millrace_workers",
        "gauge",
        "Workers whose heartbeat lives.",
        [(labels, len(queue.workers)) for labels, queue in models],
    )


ROUTES = [Route("/metrics", metrics)]
