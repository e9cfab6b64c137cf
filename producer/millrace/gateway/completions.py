"""/v1/completions: a prompt is completed as it is."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from millrace.openai_api.completions import SHAPE, read_completion

from .answering import answer
from .body import idempotency_key, read_object


async def completions(request: Request) -> Response:
    question = read_completion(await read_object(request), idempotency_key(request))
    return await answer(request, question, SHAPE)


ROUTES = [Route("/v1/completions", completions, methods=["POST"])]
