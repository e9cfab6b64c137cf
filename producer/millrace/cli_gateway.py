"""`millrace gateway`."""

from __future__ import annotations

import asyncio
import importlib
from typing import Annotated

import typer

from millrace_schemas import MillraceError

from . import config
from .async_client import AsyncClient
from .cli_output import RedisUrl
from .connection import Connection
from .extra_commands import CommandNotInstalled
from .termination import terminated_as_exit

Port = Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")]


def gateway(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Port = 8000,
    model: Annotated[str | None, typer.Option(help="Of jobs that name none. Default: the one registered.")] = None,
    allow_open: Annotated[
        bool, typer.Option("--allow-open", help="Listen on a --host that other machines reach. There are no keys.")
    ] = False,
    webhooks: Annotated[bool, typer.Option("--webhooks/--no-webhooks", help="Deliver webhooks of ended jobs.")] = True,
    webhook_allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NETWORK|HOST",
            help="Private network, like 10.0.0.0/8, or host name that webhooks may reach. May be repeated.",
        ),
    ] = None,
    redis_url: RedisUrl = None,
) -> None:
    """Serve an OpenAI-shaped HTTP API, and call the webhooks of jobs that end."""
    check_installed("gateway")
    from .gateway import GatewaySettings
    from .gateway.hosts import LOOPBACK
    from .gateway.server import is_loopback, listen, make_server, url_of
    from .gateway.webhook_addresses import Allowed
    from .gateway.webhook_dispatcher import Dispatcher
    from .gateway.webhook_settings import WebhookSettings

    if not (allow_open or is_loopback(host)):
        raise MillraceError(
            f"--host {host} lets everybody who reaches this machine use the queue, as the gateway asks for no key; "
            "put a proxy that does in front of 127.0.0.1, or say --allow-open"
        )

    webhook_settings = WebhookSettings(allowed=Allowed.of(webhook_allow or ()))

    async def serve() -> None:
        with listen(host, port) as sock:
            async with AsyncClient(config.redis_url(redis_url), model) as client:
                hosts = None if allow_open else LOOPBACK | {host}
                url = config.redis_url(redis_url)
                dispatcher = Dispatcher(Connection(url), webhook_settings) if webhooks else None
                server = make_server(client, GatewaySettings(allowed_hosts=hosts), dispatcher)
                typer.echo(f"millrace gateway: {url_of(sock)}/v1", err=True)
                await server.serve([sock])

    with terminated_as_exit():
        try:
            asyncio.run(serve())
        except KeyboardInterrupt:
            # Ctrl-C is how it ends.
            return


def check_installed(command: str) -> None:
    """Raises CommandNotInstalled with the extra that brings what the gateway needs."""
    try:
        for package in ("starlette", "uvicorn", "httpcore2"):
            importlib.import_module(package)
    except ImportError as e:
        raise CommandNotInstalled(
            f'`millrace {command}` is not installed ({e}); run: pip install "millrace[gateway]"'
        ) from e
