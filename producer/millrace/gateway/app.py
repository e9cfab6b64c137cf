"""The gateway as an ASGI application."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

from millrace import AsyncClient
from millrace_schemas import MillraceError

from . import chat, completions, health, jobs, metrics, models, page, responses
from .errors import ApiError, answer_error
from .hosts import CheckHost
from .metrics import CountRequests, RequestCounts
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
    *health.ROUTES,
    *metrics.ROUTES,
    *page.ROUTES,
]


def create_app(
    client: AsyncClient, settings: GatewaySettings | None = None, dispatcher: Dispatcher | None = None
) -> Starlette:
    """The application over `client`, which it uses and leaves open. The dispatcher runs for the app's lifespan.

    Handlers find `client`, `settings`, `slots` (of streams), `counts` (of requests) and `dispatcher` (of webhooks, or
    None) in `request.app.state`.
    """
    settings = settings or GatewaySettings()
    app = Starlette(
        routes=ROUTES,
        exception_handlers={
            HTTPException: answer_error,
            ApiError: answer_error,
            MillraceError: answer_error,
            Exception: answer_error,
        },
        lifespan=None if dispatcher is None else lambda app: dispatcher.running(),
    )
    app.router.redirect_slashes = False
    app.state.client = client
    app.state.settings = settings
    app.state.dispatcher = dispatcher
    app.state.slots = StreamSlots(settings.max_streams)
    app.state.counts = RequestCounts()
    if settings.allowed_hosts is not None:
        app.add_middleware(CheckHost, allowed=settings.allowed_hosts)
    app.add_middleware(CountRequests, counts=app.state.counts, routes=ROUTES)
    return app
