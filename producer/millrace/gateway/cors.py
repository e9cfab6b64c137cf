"""Pages of other sites: which may call this gateway from a browser. None, unless it is told."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from millrace_schemas import MillraceError

from .errors import as_api_error, respond

_ORIGIN = re.compile(r"https?://([a-z0-9-]+(\.[a-z0-9-]+)*|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_METHODS = ("GET", "POST", "DELETE")
#: What requests may have besides what browsers allow anyway. OpenAI's clients describe themselves in x-stainless-*.
_REQUEST_HEADERS = ("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID")
_STAINLESS = (
    "arch", "async", "custom-poll-interval", "helper-method", "lang", "os", "package-version", "poll-helper",
    "raw-response", "retry-count", "runtime", "runtime-version", "timeout",
)  # fmt: skip
_RATES = tuple(
    f"x-ratelimit-{what}-{name}" for what in ("limit", "remaining", "reset") for name in ("requests", "tokens")
)
_ANSWER_HEADERS = ("x-request-id", "retry-after", "retry-after-ms", "x-should-retry", "location", *_RATES)
#: Seconds for which a browser need not ask again.
_MAX_AGE = 600


def check_origin(origin: str) -> None:
    """Raises MillraceError unless `origin` is one as browsers write it, like https://app.example.com, or *."""
    if origin != "*" and not _ORIGIN.fullmatch(origin):
        raise MillraceError(
            f"--cors-origin is an origin like https://app.example.com, lower case and without a path, not {origin!r}"
        )


def allow_origins(app: Starlette, origins: Sequence[str]) -> None:
    """Adds the middleware. Credentials that a browser adds by itself are never let in."""
    app.add_middleware(_AnswerCrashes)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=_METHODS,
        allow_headers=(*_REQUEST_HEADERS, *(f"x-stainless-{name}" for name in _STAINLESS)),
        expose_headers=_ANSWER_HEADERS,
        max_age=_MAX_AGE,
    )


class _AnswerCrashes:
    """Starlette answers what nobody caught outside of all middleware, where no page could read it."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception as e:
            if scope["type"] == "http" and not started:
                await respond(as_api_error(e))(scope, receive, send)
            raise
