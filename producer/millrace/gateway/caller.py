"""Who makes a request: its client is the gateway's, narrowed to what the caller may see."""

from __future__ import annotations

from starlette.requests import Request

from millrace import AsyncClient

#: Where the scope of a request with an API key has its client.
CLIENT = "millrace.client"


def client_of(request: Request) -> AsyncClient:
    """The client to serve this request with."""
    client: AsyncClient = request.scope.get(CLIENT, request.app.state.client)
    return client
