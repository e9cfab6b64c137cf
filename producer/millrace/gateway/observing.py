"""Middleware that sees every request from its head to the end of its answer, and counts it.

It also puts the request into the trace that its traceparent header names, and writes the access log.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from millrace import AsyncClient
from millrace.tracing import continued, current_traceparent
from millrace_schemas.trace_context import trace_id_of

from .caller import CLIENT
from .logs import access_log
from .metrics import RequestCounts
from .settings import GatewaySettings

#: Others are counted as one: a client may send any word, and each would be a label for ever.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


#: Who asks for these asks often, and for nothing that anybody traces.
_UNTRACED = frozenset({"/healthz", "/readyz", "/metrics"})


class ObserveRequests:
    """The outermost middleware. A route is named by its pattern; what has none is "other"."""

    def __init__(self, app: ASGIApp, counts: RequestCounts, routes: Iterable[Route], settings: GatewaySettings):
        self._app = app
        self._traced = settings.traced
        self._log = settings.access_log
        self._counts = counts
        self._patterns = {route.endpoint: route.path for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        traceparent = Headers(scope=scope).get("traceparent")
        with continued(traceparent):
            if not self._traced or scope["path"] in _UNTRACED:
                await self._observe(scope, receive, send)
                return
            # Here and not on top: OpenTelemetry need not be installed.
            from .spans import describe, request_span

            method = _method(scope)
            with request_span(method, traceparent) as span:
                status, job = 500, None
                try:
                    status, job = await self._observe(scope, receive, send)
                finally:
                    describe(span, method, self._pattern(scope), status, job)

    async def _observe(self, scope: Scope, receive: Receive, send: Send) -> tuple[int, str | None]:
        """Answers; the status, and the job where there is one."""
        # An exception that gets past all handlers is a 500 of the server around this.
        status, job = 500, None
        began = time.perf_counter()

        async def watch(message: Message) -> None:
            nonlocal status, job
            if message["type"] == "http.response.start":
                status, job = message["status"], Headers(raw=message["headers"]).get("x-request-id")
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            seconds = time.perf_counter() - began
            self._counts.answered(_method(scope), self._pattern(scope), status, seconds)
            if self._log:
                access_log.info("request", extra=self._fields(scope, status, seconds, job))
        return status, job

    def _fields(self, scope: Scope, status: int, seconds: float, job: str | None) -> dict[str, Any]:
        """Without the query, and without anything of the bodies."""
        fields: dict[str, Any] = {
            "method": scope["method"],
            "path": scope["path"],
            "route": self._pattern(scope),
            "status": status,
            "seconds": round(seconds, 4),
            "client": scope["client"][0] if scope.get("client") else None,
        }
        if job is not None:
            fields["job"] = job
        client: AsyncClient | None = scope.get(CLIENT)
        if client is not None and client._tenant:
            fields["tenant"] = client._tenant
        traceparent = current_traceparent()
        if traceparent is not None:
            fields["trace_id"] = trace_id_of(traceparent)
        return fields

    def _pattern(self, scope: Scope) -> str:
        return self._patterns.get(scope["endpoint"], "other") if "endpoint" in scope else "other"


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in _METHODS else "other"
