"""`millrace keys`: who may use the gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import msgspec
import typer
from rich.table import Column, Table
from rich.text import Text

from . import config
from .api_keys import ApiKey, KeyStore, split_key
from .cli_output import AsJson, RedisUrl, print_json, print_table
from .connection import Connection

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke the gateway's API keys.")

R = TypeVar("R")


@app.command()
def create(
    name: Annotated[str, typer.Option(help="What you will know the key by.")],
    tenant: Annotated[str, typer.Option(help="Whose jobs it makes and sees. Default: those that have no tenant.")] = "",
    operator: Annotated[
        bool, typer.Option("--operator", help="It sees all jobs, the status page and the metrics.")
    ] = False,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Jobs that it may submit.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of the prompts and answers of those jobs.")
    ] = None,
    max_jobs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Unfinished jobs that the tenant may have.")
    ] = None,
    results_to: Annotated[
        str, typer.Option(metavar="s3://BUCKET/PREFIX", help="Where its results may go. Default: only to Redis.")
    ] = "",
    expires_in: Annotated[float | None, typer.Option(metavar="DAYS", help="Default: never.")] = None,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """Make a key and print it: this once, as Redis keeps a digest of it alone."""
    key, text = _with_store(
        redis_url,
        lambda store: store.create(
            name,
            tenant=tenant,
            operator=operator,
            requests_per_minute=requests_per_minute or 0,
            tokens_per_minute=tokens_per_minute or 0,
            max_jobs=max_jobs or 0,
            results_to=results_to,
            expires_in=expires_in,
        ),
    )
    if as_json:
        print_json({**_described(key), "key": text})
    else:
        typer.echo(text)
        typer.echo(f"This is all of key {key.id} that will ever be shown; `millrace keys revoke {key.id}`.", err=True)


@app.command("list")
def list_(as_json: AsJson = False, redis_url: RedisUrl = None) -> None:
    """List the keys, oldest first. Nobody can see their secrets."""
    keys = _with_store(redis_url, KeyStore.all)
    if as_json:
        print_json([_described(key) for key in keys])
        return
    # Days and hours stay whole in 80 columns, and stand below each other there.
    created, expiring = Column("created", min_width=10), Column("expires", min_width=10)
    table = Table(Column("id", no_wrap=True), "name", "tenant", "limits", created, expiring)
    for key in keys:
        expires = "never" if key.expires_at is None else _day(key.expires_at)
        table.add_row(
            key.id, Text(key.name), (key.tenant or "-") + " (operator)" * key.operator, _limits(key),
            _day(key.created_at), "expired" if key.expired(time.time()) else expires,
        )  # fmt: skip
    print_table(table)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `keys list` shows it.")], redis_url: RedisUrl = None
) -> None:
    """Take a key back. Gateways stop taking it within 5 seconds; its jobs go on."""
    # Whoever found a key in a log has all of it.
    parts = split_key(key_id)
    _with_store(redis_url, lambda store: store.revoke(key_id if parts is None else parts[0]))


def _with_store(redis_url: str | None, do: Callable[[KeyStore], Awaitable[R]]) -> R:
    async def run() -> R:
        connection = Connection(config.redis_url(redis_url))
        try:
            return await do(KeyStore(connection))
        finally:
            await connection.close()

    return asyncio.run(run())


def _described(key: ApiKey) -> dict[str, Any]:
    """All but the digest."""
    fields = msgspec.structs.asdict(key)
    del fields["digest"]
    return fields


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _limits(key: ApiKey) -> str:
    """A line for each."""
    limits = ((key.requests_per_minute, "requests/min"), (key.tokens_per_minute, "tokens/min"), (key.max_jobs, "jobs"))
    return "\n".join(f"{number:,} {what}" for number, what in limits if number) or "-"
