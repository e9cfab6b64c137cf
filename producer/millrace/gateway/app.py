"""The gateway as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

from millrace import AsyncClient
from millrace.api_keys import KeyStore
from millrace_schemas import MillraceError
from millrace_schemas.aio import end_tasks

from . import batch_events, batches, chat, completions, files, health, jobs, metrics, models, page, responses
from .authentication import Authenticate
from .connections import Connections
from .cors import allow_origins
from .errors import ApiError, answer_error
from .history import History
from .hosts import CheckHost
from .key_cache import KeyCache
from .metrics import RequestCounts
from .observing import ObserveRequests
from .openapi.routes import ROUTES as OPENAPI_ROUTES
from .openapi.routes import Documents
from .settings import GatewaySettings
from .sse import StreamSlots
from .webhook_dispatcher import Dispatcher

#: Every part brings its own.
ROUTES: list[Route] = [
    *chat.ROUTES,
    *completions.ROUTES,
    *responses.ROUTES,
    *models.ROUTES,
    *jobs.ROUTES,
    *files.ROUTES,
    *batches.ROUTES,
    *batch_events.ROUTES,
    *health.ROUTES,
    *metrics.ROUTES,
    *page.ROUTES,
    *OPENAPI_ROUTES,
]


def create_app(
    client: AsyncClient, settings: GatewaySettings | None = None, dispatcher: Dispatcher | None = None
) -> Starlette:
    """The application over `client`, which it uses and leaves open. The dispatcher runs for its lifespan.

    Handlers find `client`, `settings`, `slots` (of streams), `connections`, `counts` (of requests), `history` (of
    queues), `documents` (of the API) and `dispatcher` (of webhooks, or None) in `request.app.state`.
    """
    settings = settings or GatewaySettings()
    app = Starlette(
        routes=ROUTES,
        lifespan=_lifespan,
        exception_handlers={
            HTTPException: answer_error,
            ApiError: answer_error,
            MillraceError: answer_error,
            Exception: answer_error,
        },
    )
    app.router.redirect_slashes = False
    app.state.client = client
    app.state.settings = settings
    app.state.dispatcher = dispatcher
    app.state.slots = StreamSlots(settings.max_streams)
    app.state.connections = Connections(settings)
    app.state.counts = RequestCounts()
    app.state.history = History()
    app.state.documents = Documents.of(settings)
    # The last one is the outermost.
    _know_keys(app, client, settings)
    if settings.allowed_hosts is not None:
        app.add_middleware(CheckHost, allowed=settings.allowed_hosts)
    if settings.cors_origins:
        allow_origins(app, settings.cors_origins)
    app.add_middleware(ObserveRequests, counts=app.state.counts, routes=ROUTES, settings=settings)
    return app


def _know_keys(app: Starlette, client: AsyncClient, settings: GatewaySettings) -> None:
    connection = client._connection
    if connection is not None:
        app.add_middleware(
            Authenticate,
            client=client,
            connection=connection,
            keys=KeyCache(KeyStore(connection), settings.key_seconds),
            required=settings.require_keys,
        )
    elif settings.require_keys:
        raise ValueError("require_keys needs a client of a Redis: that is where the keys are")


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    """What a gateway does without being asked."""
    state = app.state
    dispatching = nullcontext() if state.dispatcher is None else state.dispatcher.running()
    watching = asyncio.create_task(state.history.watch(state.client, state.settings.look_every))
    try:
        async with dispatching:
            yield
    finally:
        await end_tasks(watching)
