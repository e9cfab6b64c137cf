"""uvicorn around the application: a socket of our own, one line when it cannot be had, and an end that is clean."""

from __future__ import annotations

import errno
import ipaddress
import socket

import uvicorn

from millrace import AsyncClient
from millrace_schemas import MillraceError

from .app import create_app
from .settings import GatewaySettings
from .webhook_dispatcher import Dispatcher

#: Seconds that a stopping gateway gives to answers under way. Their jobs go on in any case.
GRACE = 3


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


def make_server(
    client: AsyncClient, settings: GatewaySettings | None = None, dispatcher: Dispatcher | None = None
) -> uvicorn.Server:
    """For `await server.serve([sock])`, which returns after SIGINT or SIGTERM, or when `should_exit` is set.

    uvicorn raises the signal again at its end: KeyboardInterrupt, or whatever SIGTERM does in this process.
    """
    config = uvicorn.Config(
        create_app(client, settings, dispatcher),
        http="h11",
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    return uvicorn.Server(config)
