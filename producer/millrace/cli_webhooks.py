"""`millrace webhooks`: the secret that they are signed with, and those that were not delivered yet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

import typer
from rich.table import Column, Table
from rich.text import Text

from millrace_schemas import queue_of
from millrace_schemas.job import check_tenant

from . import config
from .cli_output import AsJson, RedisUrl, print_json, print_table
from .connection import Connection
from .overview_rows import printable
from .webhooks.outbox import Outbox, PendingWebhook, outbox_of

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="Secrets and deliveries of webhooks.")


@app.command()
def secret(
    tenant: Annotated[str, typer.Option(help="Whose. Default: that of jobs without a tenant.")] = "",
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Make a new one; the old one signs, too, for 24 hours.")
    ] = False,
    redis_url: RedisUrl = None,
) -> None:
    """Print the secret that receivers verify with; it is made at its first use."""
    check_tenant(tenant)
    typer.echo(_run(redis_url, lambda outbox: outbox.secrets(tenant, rotate=rotate))[0])


@app.command("list")
def list_(
    model: Annotated[str | None, typer.Option(help="Default: all.")] = None,
    count: Annotated[
        int, typer.Option(min=1, help="Entries of each model to list, those first that are due first.")
    ] = 100,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """List the webhooks that are due, under way, or wait for another try."""

    async def read(outbox: Outbox) -> list[PendingWebhook]:
        queues = await outbox.queues() if model is None else [queue_of(model)]
        return [entry for queue in queues for entry in await outbox.pending(queue, count)]

    entries = _run(redis_url, read)
    if as_json:
        print_json(entries)
        return
    table = Table(Column("job or batch", overflow="fold"), "receiver", "state", "calls", "next", "last error")
    now = time.time()
    for entry in entries:
        when = "now" if entry.due <= now else f"in {entry.due - now:,.0f} s"
        # What was submitted, and what a receiver caused: it must not steer the terminal.
        receiver, error = urlsplit(entry.url).netloc, entry.error or "-"
        cells = (entry.job, receiver, entry.state, str(entry.attempts), when, error)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    print_table(table)


@app.command()
def retry(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="Of a job or batch.")], redis_url: RedisUrl = None
) -> None:
    """Make a webhook due now, even one that was delivered or given up."""
    outbox_of(job_id)
    _run(redis_url, lambda outbox: outbox.retry(job_id))


def _run(redis_url: str | None, do: Callable[[Outbox], Awaitable[T]]) -> T:
    async def run() -> T:
        connection = Connection(config.redis_url(redis_url))
        try:
            return await do(Outbox(connection))
        finally:
            await connection.close()

    return asyncio.run(run())
