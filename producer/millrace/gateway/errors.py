"""What the gateway answers with when it cannot do what it was asked: errors of millrace.openai_api, over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from millrace.openai_api.errors import RETRY_AFTER, ApiError, error_of, invalid, too_many, unavailable

__all__ = [
    "RETRY_AFTER",
    "ApiError",
    "JSONResponse",
    "answer_error",
    "as_api_error",
    "invalid",
    "respond",
    "too_many",
    "unavailable",
]


class JSONResponse(Response):
    """Structs, dataclasses and containers as JSON."""

    media_type = "application/json"

    def __init__(self, content: Any, status_code: int = 200, headers: Mapping[str, str] | None = None):
        super().__init__(content, status_code, headers)

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


def respond(error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers)


def as_api_error(error: Exception) -> ApiError:
    """What a client is told about `error`. Of one that nobody expected it learns nothing but that."""
    return _of_http(error) if isinstance(error, HTTPException) else error_of(error)


async def answer_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of all exceptions."""
    found = as_api_error(error)
    if isinstance(error, HTTPException) and error.status_code == 405:
        # Starlette names the methods of the first route alone, and several may share a path.
        found.headers = {"allow": ", ".join(sorted(_methods(request)))}
    return respond(found)


def _methods(request: Request) -> set[str]:
    """Those that some route takes for this URL."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    matching = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in matching for method in route.methods or ()}


def _of_http(error: HTTPException) -> ApiError:
    codes = {404: "unknown_url", 405: "method_not_allowed"}
    messages = {404: "there is no such URL here", 405: "this URL does not take this method"}
    name = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    return ApiError(
        error.status_code,
        messages.get(error.status_code, error.detail),
        code=codes.get(error.status_code, name),
        headers=error.headers,
    )
