"""A port for Prometheus and for health checks: three paths, GET and HEAD, one answer a connection."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import structlog

from millrace_schemas.exposition import CONTENT_TYPE

from .errors import ConfigError

log = structlog.get_logger(__name__)

#: Seconds for a request to arrive and for its answer to be read.
_TIMEOUT = 5.0
#: Bytes of a request's head.
_HEAD_LIMIT = 16 * 1024
#: Requests at once; more are turned away.
_MOST = 16

_REASONS = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


@dataclass(frozen=True, slots=True)
class Probe:
    """What the port shows."""

    metrics: Callable[[], str]
    #: Whether jobs can be run: an engine is loaded, and the worker is not draining.
    ready: Callable[[], bool]


@contextlib.asynccontextmanager
async def serve_metrics(host: str, port: int | None, probe: Probe) -> AsyncIterator[None]:
    """Answers from `async with` to its end; without a port nobody is answered. Raises ConfigError."""
    server = None if port is None else MetricsServer(host, port, probe)
    if server is not None:
        await server.start()
    try:
        yield
    finally:
        if server is not None:
            server.stop()


class MetricsServer:
    """Answers in the loop that it is started in, so a loop that is stuck shows as a scrape that fails."""

    def __init__(self, host: str, port: int, probe: Probe):
        self._host = host
        self._port = port
        self._probe = probe
        self._server: asyncio.Server | None = None
        self._open = 0

    async def start(self) -> None:
        """Raises ConfigError when the port cannot be had."""
        try:
            self._server = await asyncio.start_server(self._serve, self._host, self._port, limit=_HEAD_LIMIT)
        except OSError as e:
            # asyncio puts the address into the words of bind, but not into those of the resolver.
            reason = os.strerror(e.errno) if e.errno and e.errno > 0 else e.strerror
            raise ConfigError(f"cannot serve metrics on {self._host}:{self._port}: {reason}") from e
        host, port = self._server.sockets[0].getsockname()[:2]
        log.info("metrics", url=f"http://[{host}]:{port}/metrics" if ":" in host else f"http://{host}:{port}/metrics")

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            # Whoever sends nonsense, or leaves, is no business of this log.
            with contextlib.suppress(TimeoutError, OSError, ValueError, asyncio.IncompleteReadError):
                async with asyncio.timeout(_TIMEOUT):
                    if self._open <= _MOST:
                        head = await reader.readuntil(b"\r\n\r\n")
                        writer.write(self._answer(head))
                        await writer.drain()
        except asyncio.LimitOverrunError:
            pass
        finally:
            self._open -= 1
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        method, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        status, kind, body = self._page(method, path.partition("?")[0])
        data = body.encode()
        fields = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n"
            "connection: close\r\n\r\n"
        )
        return fields.encode() + (b"" if method == "HEAD" else data)

    def _page(self, method: str, path: str) -> tuple[int, str, str]:
        plain = "text/plain; charset=utf-8"
        if method not in ("GET", "HEAD"):
            return 405, plain, "GET only\n"
        if path == "/metrics":
            return 200, CONTENT_TYPE, self._probe.metrics()
        if path == "/healthz":
            return 200, plain, "ok\n"
        if path == "/readyz":
            ready = self._probe.ready()
            return (200, plain, "ready\n") if ready else (503, plain, "no engine is loaded, or the worker drains\n")
        return 404, plain, "/metrics, /healthz and /readyz are here\n"
