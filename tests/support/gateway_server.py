"""The gateway as it is served, uvicorn and all, in a thread of the test's process."""

from __future__ import annotations

import threading
from types import TracebackType

from millrace import AsyncClient
from millrace.connection import Connection
from millrace.gateway import GatewaySettings
from millrace.gateway.server import GatewayServer as Server
from millrace.gateway.server import listen, make_server, run, url_of
from millrace.gateway.webhook_dispatcher import Dispatcher
from millrace.gateway.webhook_settings import WebhookSettings


class GatewayServer:
    """Listens on a free port of this machine from `with` to its end."""

    def __init__(
        self,
        redis_url: str,
        settings: GatewaySettings | None = None,
        *,
        retry_for: float = 10.0,
        webhooks: WebhookSettings | None = None,
    ):
        """Delivers webhooks only when it is told how."""
        self._redis_url = redis_url
        self._settings = settings
        self._webhooks = webhooks
        self._retry_for = retry_for
        self._socket = listen("127.0.0.1", 0)
        self.url = url_of(self._socket)
        self.server: Server | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: run(self._serve()))

    async def _serve(self) -> None:
        async with AsyncClient(self._redis_url, retry_for=self._retry_for) as client:
            dispatcher = None
            if self._webhooks is not None:
                dispatcher = Dispatcher(Connection(self._redis_url, retry_for=self._retry_for), self._webhooks)
            self.server = make_server(client, self._settings, dispatcher)
            self._ready.set()
            await self.server.serve([self._socket])

    def __enter__(self) -> GatewayServer:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.server is not None
        self.server.should_exit = True
        self._thread.join()
        self._socket.close()
