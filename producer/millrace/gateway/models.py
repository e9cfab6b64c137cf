"""/v1/models: what workers have registered."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from millrace import ModelInfo

from .caller import client_of
from .errors import ApiError, JSONResponse


async def list_models(request: Request) -> Response:
    client = client_of(request)
    return JSONResponse({"object": "list", "data": [_model(info) for info in await client.models()]})


async def get_model(request: Request) -> Response:
    client = client_of(request)
    name = request.path_params["name"]
    registered = await client.models()
    for info in registered:
        if info.name == name:
            return JSONResponse(_model(info))
    there = f"registered: {', '.join(info.name for info in registered)}" if registered else "no model is registered"
    raise ApiError(
        404, f"no worker has registered model {name[:200]!r}; {there}", code="model_not_found", param="model"
    )


def _model(info: ModelInfo) -> dict[str, Any]:
    # When a model was made nobody here knows; OpenAI's clients insist on a number.
    return {
        "id": info.name,
        "object": "model",
        "created": 0,
        "owned_by": "millrace",
        "max_model_len": info.max_model_len,
        "has_chat_template": info.has_chat_template,
    }


ROUTES = [
    Route("/v1/models", list_models),
    # Names have slashes.
    Route("/v1/models/{name:path}", get_model),
]
