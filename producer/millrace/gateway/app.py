"""The gateway as an ASGI application."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute

from millrace import AsyncClient
from millrace_schemas import MillraceError

from . import health, models
from .errors import ApiError, answer_error
from .settings import GatewaySettings
from .sse import StreamSlots


def create_app(client: AsyncClient, settings: GatewaySettings | None = None) -> Starlette:
    """The application over `client`, which it uses and leaves open.

    Handlers find `client`, `settings` and `slots` (of streams) in `request.app.state`.
    """
    app = Starlette(
        routes=_routes(),
        exception_handlers={
            HTTPException: answer_error,
            ApiError: answer_error,
            MillraceError: answer_error,
            Exception: answer_error,
        },
    )
    app.router.redirect_slashes = False
    settings = settings or GatewaySettings()
    app.state.client = client
    app.state.settings = settings
    app.state.slots = StreamSlots(settings.max_streams)
    return app


def _routes() -> list[BaseRoute]:
    """Every part brings its own routes."""
    return [*models.ROUTES, *health.ROUTES]
