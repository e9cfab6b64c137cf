"""Whom a gateway takes requests for.

A page in a browser can make the name of its own site mean 127.0.0.1 and then talk to a server there that knows no keys.
Its requests still carry the site's name in their Host header.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import ApiError, respond

#: Names of this machine, as a Host header has them.
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


class CheckHost:
    """Middleware that refuses requests for other hosts; ports do not matter."""

    def __init__(self, app: ASGIApp, allowed: Collection[str]):
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host", "")
            name = host if host.endswith("]") else host.rsplit(":", 1)[0]
            if name.lower() not in self._allowed:
                error = ApiError(
                    403,
                    f"this gateway answers for {', '.join(sorted(self._allowed))} only, not for {name[:100]!r}; "
                    "`millrace gateway` takes every name with --require-keys or --allow-open",
                    code="host_not_allowed",
                )
                await respond(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
