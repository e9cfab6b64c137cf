"""`millrace cache`: prefixes that workers keep in their caches for as long as they are asked for."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.table import Column, Table
from rich.text import Text

from millrace_schemas import HeldPin

from . import config
from .async_client import AsyncClient
from .cache_warming import Warmed, warm
from .cli_output import AsJson, RedisUrl, print_json, print_table
from .connection import Connection
from .overview_rows import age, printable
from .pins import PinReader, PinView
from .prefix_file import read_prefixes

app = typer.Typer(no_args_is_help=True, help="Prefixes that are pinned in the caches of workers.")

T = TypeVar("T")

Model = Annotated[str | None, typer.Option(help="Default: the one registered model.")]
#: More workers than these are counted and not named where they differ.
_NAMED = 3
#: Characters of an id in a table.
_SHORT = len("pin_") + 12

_Do = Callable[[AsyncClient, Connection, str], Awaitable[T]]


@app.command("list")
def list_(model: Model = None, as_json: AsJson = False, redis_url: RedisUrl = None) -> None:
    """List what is pinned, oldest first, and where workers hold it."""
    pins = _run(redis_url, model, lambda _, connection, name: PinReader(connection, name).all())
    if as_json:
        print_json(pins)
        return
    # Most queues have no tenants, and a terminal has few columns.
    tenants = any(pin.tenant for pin in pins)
    table = Table(
        Column("pin", no_wrap=True), *(["tenant"] if tenants else []),
        *_numbers("tokens", "size", "hits", "age", "left"), Column("held in", overflow="fold"),
    )  # fmt: skip
    for pin in pins:
        tenant = [Text(printable(pin.tenant or "-"))] if tenants else []
        numbers = (f"{pin.tokens:,}", _size(pin.bytes), f"{pin.hits:,}", age(pin.age), age(pin.expires_in))
        table.add_row(_short(pin), *tenant, *numbers, Text(_places(pin)))
    print_table(table)


@app.command("warm")
def warm_(
    file: Annotated[
        Path,
        typer.Argument(
            exists=True,
            dir_okay=False,
            metavar="FILE",
            help="JSON lines (.jsonl) with system, messages, prompt or prompt_token_ids, and cache_salt and cache_ttl; "
            "or one system prompt as text.",
        ),
    ],
    ttl: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="How long after their last use. Default: 3600.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="Whose jobs they serve. Default: those without a tenant.")] = "",
    timeout: Annotated[
        float, typer.Option(min=1.0, metavar="SECONDS", help="Longest wait for jobs and workers together.")
    ] = 300.0,
    model: Model = None,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """Pin prefixes, and wait until every worker holds them. Exit code 1 when one does not."""
    prefixes = read_prefixes(file, ttl)
    warmed = _run(
        redis_url,
        model,
        lambda client, connection, name: warm(
            client, connection, name, prefixes, tenant=tenant, timeout=timeout
        ),
        needs_workers=True,
    )  # fmt: skip
    if as_json:
        print_json(warmed)
    else:
        _print_warmed(warmed)
    if any(it.problem for it in warmed):
        raise typer.Exit(1)


@app.command()
def evict(
    pins: Annotated[list[str] | None, typer.Argument(metavar="[PIN]...", help="Ids, or what they begin with.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Evict every pin of the model.")] = False,
    model: Model = None,
    redis_url: RedisUrl = None,
) -> None:
    """Let workers forget pins. What runs behind one goes on; its blocks stay while there is room."""
    if bool(pins) == all_:
        raise typer.BadParameter("give ids of pins, or --all")
    for pin in _run(redis_url, model, lambda _, connection, name: PinReader(connection, name).evict(pins)):
        typer.echo(pin)


def _run(redis_url: str | None, model: str | None, do: _Do[T], *, needs_workers: bool = False) -> T:
    """What `do` returns, given a client, its connection and the model's name. Where it needs workers and there are
    none, stderr says that it waits for one.

    Raises UnknownModel when that is empty and no worker has registered the model.
    """

    async def run() -> T:
        async with AsyncClient(config.redis_url(redis_url), model) as client:
            connection = client._connection
            assert connection is not None
            stats = await client.queue_stats()
            if needs_workers and not stats.workers:
                await client._registry.info(stats.model)
                typer.echo(f"no worker of {stats.model} is running; waiting for one", err=True)
            done = await do(client, connection, stats.model)
            if not done:  # which a name that nobody knows looks like, too
                await client._registry.info(stats.model)
            return done

    return asyncio.run(run())


def _print_warmed(warmed: Sequence[Warmed]) -> None:
    table = Table(
        Column("prefix", overflow="fold"), Column("pin", no_wrap=True), *_numbers("tokens", "size"),
        Column("held in", overflow="fold"), "problem",
    )  # fmt: skip
    for it in warmed:
        cells = ["-", "-", "-"] if it.pin is None else [_short(it.pin), f"{it.pin.tokens:,}", _size(it.pin.bytes)]
        places = "-" if it.pin is None else _places(it.pin)
        table.add_row(Text(printable(it.where)), *cells, Text(places), Text(printable(it.problem or "-")))
    print_table(table)


def _numbers(*names: str) -> list[Column]:
    return [Column(name, justify="right", no_wrap=True) for name in names]


def _short(pin: PinView) -> str:
    """Enough of its id for `evict`."""
    return pin.id[:_SHORT]


def _places(pin: PinView) -> str:
    """Where workers hold it: one answer when all agree, else a line for each of a few, or for each kind of answer."""
    if not pin.workers:
        return "no worker"
    places = {worker: printable(_place(held)) for worker, held in pin.workers.items()}
    counts = Counter(places.values())
    if len(counts) == 1:
        (place,) = counts
        return place if len(places) == 1 else f"{place} on {len(places)}"
    if len(places) > _NAMED:
        return "\n".join(f"{place} on {count}" for place, count in counts.most_common())
    return "\n".join(f"{place}: {printable(worker)}" for worker, place in places.items())


def _place(held: HeldPin | None) -> str:
    if held is None:
        return "-"
    return " ".join(filter(None, (held.tier, held.problem and f"({held.problem})"))) or "-"


def _size(count: int) -> str:
    """In units of 10^6 and 10^9 bytes."""
    if count >= 10**9:
        return f"{count / 10**9:,.2f} GB"
    return f"{count / 10**6:,.2f} MB" if count else "-"
