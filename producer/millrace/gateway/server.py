"""uvicorn around the application: a socket of our own, one line when it cannot be had, and an end that is clean."""

from __future__ import annotations

import asyncio
import errno
import functools
import ipaddress
import math
import socket
from collections.abc import Coroutine
from typing import Any, cast

import uvicorn

from millrace import AsyncClient
from millrace_schemas import MillraceError

from .app import create_app
from .connections import Connections
from .http_protocol import GatewayProtocol
from .settings import GatewaySettings
from .webhook_dispatcher import Dispatcher

#: Seconds that a stopping gateway gives to answers under way. Their jobs go on in any case.
GRACE = 3
#: Ticks of uvicorn, ten a second, between two sweeps of the connections.
_SWEEP_TICKS = 10
#: Seconds after which a client that no longer acknowledges anything counts as gone.
_VANISHED = 60

#: Options of TCP where the system has them; seconds, but for TCP_USER_TIMEOUT, milliseconds.
_KEEP_ALIVE = {
    getattr(socket, name): value
    for name, value in {
        "TCP_KEEPIDLE": _VANISHED // 2, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": _VANISHED * 1000,
    }.items()
    if hasattr(socket, name)
}  # fmt: skip


class CannotListen(MillraceError):
    """The address is taken, or is none of this machine's."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises CannotListen."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as e:
        raise CannotListen(f"cannot listen on {host}: {e.strerror}") from e
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit these: who vanished without a word is found out, whether we write or wait.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE.items():
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        sock.bind(address)
        sock.listen(2048)
    except OSError as e:
        sock.close()
        if e.errno == errno.EADDRINUSE:
            raise CannotListen(f"port {port} on {host} is in use; choose another with --port") from e
        raise CannotListen(f"cannot listen on {host}:{port}: {e.strerror}") from e
    return sock


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def url_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class GatewayServer(uvicorn.Server):
    """uvicorn's, which also looks after connections that take too long."""

    def __init__(self, config: uvicorn.Config, connections: Connections):
        super().__init__(config)
        self.connections = connections

    async def on_tick(self, counter: int) -> bool:
        """Every tenth of a second."""
        if counter % _SWEEP_TICKS == 0:
            self.connections.sweep(asyncio.get_running_loop().time())
        return await super().on_tick(counter)


def make_server(
    client: AsyncClient,
    settings: GatewaySettings | None = None,
    dispatcher: Dispatcher | None = None,
    *,
    own_log: bool = False,
) -> GatewayServer:
    """With `own_log` uvicorn leaves logging as this process has set it up.

    For `await server.serve([sock])`, which returns after SIGINT or SIGTERM, or when `should_exit` is set.

    uvicorn raises the signal again at its end: KeyboardInterrupt, or whatever SIGTERM does in this process.
    """
    settings = settings or GatewaySettings()
    app = create_app(client, settings, dispatcher)
    connections = app.state.connections
    config = uvicorn.Config(
        app,
        # Annotated as a class, used as a function that makes one.
        http=cast("type[asyncio.Protocol]", functools.partial(GatewayProtocol, shared=connections)),
        ws="none",
        lifespan="on",
        log_level="warning",
        log_config=None if own_log else uvicorn.config.LOGGING_CONFIG,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=math.ceil(settings.idle_timeout),
        timeout_graceful_shutdown=GRACE,
    )
    return GatewayServer(config, connections)


def run(main: Coroutine[Any, Any, None]) -> None:
    """asyncio.run, on uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)
