"""The status page at /, what it loads, and its numbers for programs. It is whole without its script."""

from __future__ import annotations

import asyncio
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from millrace.overview import Overview, read_overview
from millrace_schemas import MillraceError

from .caller import client_of
from .errors import ApiError, JSONResponse, as_api_error, unavailable
from .history import History
from .page_html import render
from .settings import GatewaySettings

#: Seconds that a page waits for Redis.
_PATIENCE = 5.0

_STATIC = Path(__file__).parent / "static"
ASSETS = {
    "page.css": (_STATIC.joinpath("page.css").read_bytes(), "text/css"),
    "docs.css": (_STATIC.joinpath("docs.css").read_bytes(), "text/css"),
    "page.js": (_STATIC.joinpath("page.js").read_bytes(), "text/javascript"),
}
#: Nothing from elsewhere, nothing inline, no HTML made by the script, and no frame of another site around it.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


async def page(request: Request) -> Response:
    """The page as things are now; without Redis a 503 that says so, whose script goes on asking."""
    headers = {**HEADERS, "cache-control": "no-store"}
    history: History = request.app.state.history
    settings: GatewaySettings = request.app.state.settings
    try:
        overview = await _read(request)
    except ApiError as e:
        nothing = Overview(models=[], queues=[], failures=[])
        return HTMLResponse(
            render(nothing, history, every=settings.page_every, problem=e.message), e.status, {**headers, **e.headers}
        )
    return HTMLResponse(render(overview, history, every=settings.page_every), headers=headers)


async def status(request: Request) -> Response:
    """The overview, for programs. Raises ApiError."""
    return JSONResponse(await _read(request), headers={"cache-control": "no-store"})


async def asset(request: Request) -> Response:
    """The page's script or style."""
    found = ASSETS.get(request.path_params["name"])
    if found is None:
        raise HTTPException(404)
    content, kind = found
    return Response(content, headers={**HEADERS, "cache-control": "no-cache"}, media_type=kind)


async def _read(request: Request) -> Overview:
    client, history = client_of(request), request.app.state.history
    try:
        async with asyncio.timeout(_PATIENCE):
            return await read_overview(client, history.paces)
    except TimeoutError:
        raise unavailable(f"Redis did not answer within {_PATIENCE:g} s", "queue_unavailable") from None
    except MillraceError as e:
        raise as_api_error(e) from e


ROUTES = [Route("/", page), Route("/status.json", status), Route("/page/{name}", asset)]
