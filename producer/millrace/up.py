"""`millrace up`: Redis, a worker and the gateway on this machine, from one command to one Ctrl-C."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import json
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer

from millrace_schemas.aio import end_tasks

from .async_client import AsyncClient
from .bulk.storage import url_of as url_of_place
from .cli_gateway import Port, check_installed
from .connection import Connection
from .demo_tasks import PROMPT_OF_TASK, make_example, system_prompt
from .demo_worker import MODEL, DemoWorker
from .embedded import EmbeddedRedis
from .errors import WorkerDied
from .termination import terminated_as_exit

#: Where clients look unless they are told otherwise.
REDIS_PORT = 6379
_POLL = 0.5
#: Lines of its log that a bulk worker which has ended leaves behind.
_LAST_LINES = 20
#: A worker that dies is found by others after this many seconds; here it is the only one.
_LEASE = 30.0


def up(
    model: Annotated[str, typer.Option(help="A directory, a hub name, or the packaged demo model.")] = MODEL,
    port: Port = 8000,
    redis_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Use this Redis; default: a private one.")
    ] = None,
    redis_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of the private Redis; when it is taken, or 0: any free one.")
    ] = REDIS_PORT,
) -> None:
    """Start a Redis, a worker, a bulk worker and the HTTP gateway, for this machine only. Ctrl-C stops all of it."""
    check_installed("up")
    from .gateway.server import listen, run

    with terminated_as_exit():
        try:
            with (
                listen("127.0.0.1", port) as sock,
                tempfile.TemporaryDirectory(prefix="millrace-up-") as directory,
                _redis(redis_url, redis_port) as url,
                DemoWorker(url, Path(directory) / "worker.log", model=model, lease=_LEASE) as worker,
                _bulk(url, Path(directory) / "bulk.log") as check_bulk,
            ):
                # What was imported stays: collections need not look at it, and hold up the loop for less.
                gc.freeze()
                run(_serve(sock, url, worker, check_bulk, url_of_place(str(Path(directory) / "files"))))
        except KeyboardInterrupt:
            typer.echo("stopped", err=True)


@contextmanager
def _bulk(url: str, log: Path) -> Iterator[Callable[[], None]]:
    """The bulk worker, where it is installed; what is yielded raises WorkerDied once it has ended."""
    if importlib.util.find_spec("rq") is None:
        yield lambda: None
        return
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "millrace", "bulk", "--redis-url", url], stdout=output, stderr=output
        )

    def check() -> None:
        if (code := process.poll()) is not None:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-_LAST_LINES:])
            raise WorkerDied(f"the bulk worker ended with code {code}; its last lines:", last)

    try:
        yield check
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _redis(url: str | None, port: int) -> Iterator[str]:
    if url is not None:
        yield url
        return
    free = bool(port) and _is_free(port)
    if port and not free:
        typer.echo(f"port {port} is in use, so this Redis has another; give its URL, below, to clients", err=True)
    with EmbeddedRedis(port=port if free else None) as redis:
        yield redis.url


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        # As the server does: what an earlier one left behind is no hindrance.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


async def _serve(
    sock: socket.socket, redis_url: str, worker: DemoWorker, check_bulk: Callable[[], None], files: str
) -> None:
    """Serves until a signal comes. Raises WorkerDied when a worker ends before that."""
    from .gateway import GatewaySettings
    from .gateway.connections import allow_files
    from .gateway.hosts import LOOPBACK
    from .gateway.server import make_server, url_of
    from .gateway.webhook_addresses import Allowed
    from .gateway.webhook_dispatcher import Dispatcher
    from .gateway.webhook_settings import WebhookSettings

    async with AsyncClient(redis_url) as client:
        # What is tried out here receives on this machine.
        here = WebhookSettings(allowed=Allowed.of(("127.0.0.0/8", "::1", "localhost")))
        dispatcher = Dispatcher(Connection(redis_url), here)
        settings = GatewaySettings(allowed_hosts=LOOPBACK, files=files)
        settings = replace(settings, max_connections=allow_files(settings.max_connections))
        server = make_server(client, settings, dispatcher)

        async def watch() -> None:
            try:
                await _follow(client, worker, check_bulk, f"{url_of(sock)}/v1", redis_url)
            finally:
                server.should_exit = True

        watching = asyncio.create_task(watch())
        try:
            await server.serve([sock])
            if watching.done():
                watching.result()
        finally:
            await end_tasks(watching)


async def _follow(
    client: AsyncClient, worker: DemoWorker, check_bulk: Callable[[], None], url: str, redis_url: str
) -> None:
    """Says when the model is there and how to talk to it, then looks after both workers. Raises WorkerDied."""
    typer.echo(f"Redis      {redis_url}\ngateway    {url}\nworker     loading {worker.served_name} ...", err=True)
    while not (found := [info for info in await client.models() if info.name == worker.served_name]):
        worker.check("before it was ready")
        await asyncio.sleep(_POLL)
    typer.echo("ready; Ctrl-C stops everything. Try:", err=True)
    typer.echo(_curl_line(url, worker.served_name, chat=found[0].has_chat_template))
    while True:
        worker.check("while it served")
        check_bulk()
        await asyncio.sleep(_POLL)


def _curl_line(url: str, model: str, *, chat: bool) -> str:
    body: dict[str, Any] = {"model": model, "max_tokens": 64}
    if not chat:
        path, body["prompt"] = "completions", "The capital of France is"
    else:
        path, body["messages"] = "chat/completions", [{"role": "user", "content": "What is the capital of France?"}]
    if model == MODEL:
        # It knows a few tasks only.
        task = min(PROMPT_OF_TASK, key=lambda name: len(system_prompt(name)))
        question = make_example(Random(0), task, split="held_out").user
        contents = {"system": system_prompt(task), "user": question}
        body["messages"] = [{"role": role, "content": content} for role, content in contents.items()]
        body["temperature"] = 0
    data = shlex.quote(json.dumps(body))
    return f"curl {url}/{path} -H 'content-type: application/json' -d {data}"
