"""/healthz: this process answers. /readyz: jobs that it takes will be run."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .caller import client_of
from .errors import JSONResponse, unavailable


async def healthz(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """200 with the models that a live worker serves; 503 when there is none, or no Redis."""
    client = client_of(request)
    served = [info.name for info in await client.models() if (await client.queue_stats(info.name)).workers]
    if not served:
        raise unavailable("no live worker; start one: millrace worker --model <name>", "no_live_worker")
    return JSONResponse({"status": "ready", "models": served})


ROUTES = [Route("/healthz", healthz), Route("/readyz", readyz)]
