"""GET /openapi.json and GET /docs."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from millrace.gateway.page import HEADERS
from millrace.gateway.settings import GatewaySettings

from .docs_html import render
from .document import build_document


@dataclass(frozen=True, slots=True)
class Documents:
    """The document as it is sent, made once of an app."""

    json: bytes
    html: str

    @classmethod
    def of(cls, settings: GatewaySettings) -> Documents:
        document = build_document(settings)
        return cls(msgspec.json.encode(document), render(document))


async def openapi(request: Request) -> Response:
    documents: Documents = request.app.state.documents
    return Response(documents.json, headers={"cache-control": "no-cache"}, media_type="application/json")


async def docs(request: Request) -> Response:
    documents: Documents = request.app.state.documents
    return HTMLResponse(documents.html, headers={**HEADERS, "cache-control": "no-cache"})


ROUTES = [Route("/openapi.json", openapi), Route("/docs", docs)]
