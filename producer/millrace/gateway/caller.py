"""Who makes a request: its client is the gateway's, narrowed to what the caller may see."""

from __future__ import annotations

from starlette.requests import Request

from millrace import AsyncClient


def client_of(request: Request) -> AsyncClient:
    """The client to serve this request with."""
    client: AsyncClient = request.app.state.client
    return client
