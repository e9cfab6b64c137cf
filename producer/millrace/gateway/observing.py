"""Middleware that sees every request from its head to the end of its answer, and counts it."""

from __future__ import annotations

import time
from collections.abc import Iterable

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import RequestCounts

#: Others are counted as one: a client may send any word, and each would be a label for ever.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class ObserveRequests:
    """The outermost middleware. A route is named by its pattern; what has none is "other"."""

    def __init__(self, app: ASGIApp, counts: RequestCounts, routes: Iterable[Route]):
        self._app = app
        self._counts = counts
        self._patterns = {route.endpoint: route.path for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # An exception that gets past all handlers is a 500 of the server around this.
        status = 500
        began = time.perf_counter()

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._counts.answered(method, self._pattern(scope), status, time.perf_counter() - began)

    def _pattern(self, scope: Scope) -> str:
        return self._patterns.get(scope["endpoint"], "other") if "endpoint" in scope else "other"
