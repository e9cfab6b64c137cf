"""/v1/chat/completions."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from millrace.openai_api.chat import SHAPE, read_chat

from .answering import answer
from .body import idempotency_key, read_object


async def chat_completions(request: Request) -> Response:
    question = read_chat(await read_object(request), idempotency_key(request))
    return await answer(request, question, SHAPE)


ROUTES = [Route("/v1/chat/completions", chat_completions, methods=["POST"])]
