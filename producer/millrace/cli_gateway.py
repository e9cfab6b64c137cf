"""`millrace gateway`."""

from __future__ import annotations

import gc
import importlib
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from millrace_schemas import MillraceError
from millrace_schemas.telemetry import start_tracing

from . import config
from .api_keys import KeyStore
from .async_client import AsyncClient
from .cli_output import LogFormat, LogLevel, RedisUrl
from .connection import Connection
from .extra_commands import CommandNotInstalled
from .termination import terminated_as_exit

if TYPE_CHECKING:
    from .gateway import GatewaySettings

Port = Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")]


def gateway(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Port = 8000,
    model: Annotated[str | None, typer.Option(help="Of jobs that name none. Default: the one registered.")] = None,
    require_keys: Annotated[
        bool,
        typer.Option("--require-keys", help="Ask for API keys on a loopback --host, too; elsewhere it always does."),
    ] = False,
    allow_open: Annotated[
        bool,
        typer.Option("--allow-open", help="Ask for no keys, whatever the --host: everybody who reaches it is let in."),
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="With --allow-open: answer under this name and local ones only; may be repeated.",
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Let pages of this site call from browsers; may be given again."),
    ] = None,
    webhooks: Annotated[bool, typer.Option("--webhooks/--no-webhooks", help="Deliver webhooks of ended jobs.")] = True,
    webhook_allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NETWORK|HOST",
            help="Private network, like 10.0.0.0/8, or host name that webhooks may reach. May be repeated.",
        ),
    ] = None,
    files: Annotated[
        str | None,
        typer.Option(metavar="PLACE", help="Of /v1/files and /v1/batches: s3://bucket/prefix or a directory."),
    ] = None,
    max_connections: Annotated[int, typer.Option(min=1, help="Of clients, at once.")] = 10_000,
    access_log: Annotated[bool, typer.Option("--access-log", help="Log each request as a line.")] = False,
    log_level: Annotated[LogLevel, typer.Option(help="Least that is logged besides requests.")] = "warning",
    log_format: LogFormat = "auto",
    redis_url: RedisUrl = None,
) -> None:
    """Serve an OpenAI-shaped HTTP API, and call the webhooks of jobs that end."""
    check_installed("gateway")
    from .bulk.storage import url_of as url_of_files
    from .gateway import logs
    from .gateway.connections import allow_files
    from .gateway.server import listen, make_server, run, url_of
    from .gateway.webhook_addresses import Allowed
    from .gateway.webhook_dispatcher import Dispatcher
    from .gateway.webhook_settings import WebhookSettings

    settings = _settings(host, require_keys, allow_open, tuple(cors_origin or ()), tuple(allow_host or ()))
    webhook_settings = WebhookSettings(allowed=Allowed.of(webhook_allow or ()))

    connections = allow_files(max_connections)
    if connections < max_connections:
        typer.echo(
            f"millrace gateway: this process may open files for {connections:,} connections only; for "
            f"{max_connections:,} raise the hard limit (ulimit -Hn, LimitNOFILE)",
            err=True,
        )

    place = None if files is None else url_of_files(files)
    settings = replace(settings, max_connections=connections, access_log=access_log, files=place)
    logs.configure(log_level, log_format)
    end_tracing = start_tracing("millrace-gateway") if config.traces_wanted() else None
    settings = replace(settings, traced=end_tracing is not None)

    async def serve() -> None:
        url = config.redis_url(redis_url)
        async with AsyncClient(url, model) as client:
            if settings.require_keys:
                await _check_keys(client, host)
            with listen(host, port) as sock:
                dispatcher = Dispatcher(Connection(url), webhook_settings) if webhooks else None
                server = make_server(client, settings, dispatcher, own_log=True)
                typer.echo(f"millrace gateway: {url_of(sock)}/v1", err=True)
                await server.serve([sock])

    with terminated_as_exit():
        try:
            # What was imported stays: collections need not look at it, and hold up the loop for less.
            gc.freeze()
            run(serve())
        except KeyboardInterrupt:
            # Ctrl-C is how it ends.
            return
        finally:
            if end_tracing is not None:
                end_tracing()


def _settings(
    host: str, require_keys: bool, allow_open: bool, origins: tuple[str, ...], names: tuple[str, ...] = ()
) -> GatewaySettings:
    """Raises MillraceError on flags that contradict each other."""
    from .gateway import GatewaySettings
    from .gateway.cors import check_origin
    from .gateway.hosts import LOOPBACK
    from .gateway.server import is_loopback

    if require_keys and allow_open:
        raise MillraceError("--require-keys asks for keys and --allow-open for none; say one of them")
    if names and not allow_open:
        raise MillraceError("--allow-host narrows --allow-open, which is not there")
    required = require_keys or not (allow_open or is_loopback(host))
    for origin in origins:
        check_origin(origin)
    if "*" in origins and not required:
        raise MillraceError(
            "--cors-origin '*' lets every page in a browser use the queue; name the origins, or say --require-keys"
        )
    # Pages that give their own name to this machine have no key.
    guarded = not required and (names or not allow_open)
    hosts = LOOPBACK | {host, *(name.lower() for name in names)} if guarded else None
    return GatewaySettings(require_keys=required, allowed_hosts=hosts, cors_origins=origins)


async def _check_keys(client: AsyncClient, host: str) -> None:
    """Raises MillraceError when nobody could be let in."""
    connection = client._connection
    if connection is None or not await KeyStore(connection).any_live():
        raise MillraceError(
            f"the gateway on --host {host} asks for API keys, and there is none in this Redis; "
            "make one with `millrace keys create --name ...`, or say --allow-open to let everybody in who reaches it"
        )


def check_installed(command: str) -> None:
    """Raises CommandNotInstalled with the extra that brings what the gateway needs."""
    try:
        for package in ("starlette", "uvicorn", "httptools", "httpcore2", "python_multipart"):
            importlib.import_module(package)
    except ImportError as e:
        raise CommandNotInstalled(
            f'`millrace {command}` is not installed ({e}); run: pip install "millrace[gateway]"'
        ) from e
