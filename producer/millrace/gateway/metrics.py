"""/metrics, in Prometheus' text format: this process's requests, and the queues as they are right now."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from millrace import AsyncClient, QueueStats
from millrace_schemas import MillraceError

from .caller import client_of
from .sse import StreamSlots
from .webhook_dispatcher import Dispatcher

#: Seconds that a scrape waits for Redis.
_PATIENCE = 5.0


class RequestCounts:
    """Requests that were answered, by method, route and status. One of an app."""

    def __init__(self) -> None:
        self.by_label: Counter[tuple[str, str, int]] = Counter()


class CountRequests:
    """Middleware that counts. A route is counted by its pattern, so that ids make no labels."""

    def __init__(self, app: ASGIApp, counts: RequestCounts, routes: Iterable[Route]):
        self._app = app
        self._counts = counts.by_label
        self._patterns = {route.endpoint: route.path for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # An exception that gets past all handlers is a 500 of the server around this.
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            self._counts[scope["method"], self._pattern(scope), status] += 1

    def _pattern(self, scope: Scope) -> str:
        return self._patterns.get(scope["endpoint"], "other") if "endpoint" in scope else "other"


async def metrics(request: Request) -> Response:
    state = request.app.state
    counts: RequestCounts = state.counts
    slots: StreamSlots = state.slots
    lines = ["# TYPE millrace_gateway_requests_total counter"]
    for (method, route, status), number in sorted(counts.by_label.items()):
        lines.append(f'millrace_gateway_requests_total{{method="{method}",route="{route}",status="{status}"}} {number}')
    lines += ["# TYPE millrace_gateway_streams gauge", f"millrace_gateway_streams {slots.used}"]
    lines += ["# TYPE millrace_gateway_connections gauge", f"millrace_gateway_connections {state.connections.open}"]
    lines += _describe_webhooks(state.dispatcher)
    queues = await _queues(client_of(request))
    lines += ["# TYPE millrace_redis_up gauge", f"millrace_redis_up {int(queues is not None)}"]
    lines += _describe(queues or [])
    return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


def _describe_webhooks(dispatcher: Dispatcher | None) -> Iterator[str]:
    if dispatcher is None:
        return
    yield "# TYPE millrace_gateway_webhooks_total counter"
    for outcome, number in sorted(dispatcher.counts.items()):
        yield f'millrace_gateway_webhooks_total{{outcome="{outcome}"}} {number}'
    yield "# TYPE millrace_webhooks_waiting gauge"
    for queue, number in sorted(dispatcher.waiting.items()):
        yield f'millrace_webhooks_waiting{{queue="{queue}"}} {number}'


async def _queues(client: AsyncClient) -> list[QueueStats] | None:
    """None without Redis: the gateway's own numbers are wanted then more than ever."""
    try:
        async with asyncio.timeout(_PATIENCE):
            return [await client.queue_stats(info.name) for info in await client.models()]
    except (MillraceError, TimeoutError):
        return None


def _describe(queues: list[QueueStats]) -> Iterator[str]:
    lanes = [(queue.model, lane, numbers) for queue in queues for lane, numbers in queue.lanes.items()]
    yield "# TYPE millrace_queue_waiting gauge"
    for model, lane, numbers in lanes:
        yield f'millrace_queue_waiting{{model="{model}",lane="{lane}"}} {numbers.waiting}'
    yield "# TYPE millrace_queue_in_flight gauge"
    for model, lane, numbers in lanes:
        yield f'millrace_queue_in_flight{{model="{model}",lane="{lane}"}} {numbers.in_flight}'
    yield "# TYPE millrace_queue_oldest_waiting_seconds gauge"
    for model, lane, numbers in lanes:
        yield f'millrace_queue_oldest_waiting_seconds{{model="{model}",lane="{lane}"}} {numbers.oldest_waiting or 0}'
    for name, of in (("queue_delayed", "delayed"), ("queue_dead", "dead")):
        yield f"# TYPE millrace_{name} gauge"
        for queue in queues:
            yield f'millrace_{name}{{model="{queue.model}"}} {getattr(queue, of)}'
    yield "# TYPE millrace_workers gauge"
    for queue in queues:
        yield f'millrace_workers{{model="{queue.model}"}} {len(queue.workers)}'


ROUTES = [Route("/metrics", metrics)]
