"""`millrace batch`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.table import Column, Table
from rich.text import Text

from millrace_schemas.batch import BatchStatus, PromptColumn

from . import config
from .async_client import AsyncClient
from .bulk.described import describe, status_of
from .bulk.errors import BatchNotFound
from .bulk.glance import Paces
from .bulk.output import errors_url, output_url
from .bulk.store import BatchStore, View
from .bulk.submitting import make_batch
from .cli_batch_watch import watch as watch_batch
from .cli_output import AsJson, RedisUrl, print_json, print_table
from .cli_progress import line_of
from .connection import Connection
from .overview_rows import printable
from .tracing import continued

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="Files of prompts, worked off by `millrace bulk`.")
BatchId = Annotated[str, typer.Argument(metavar="ID", help="Of a batch.")]
Watch = Annotated[bool, typer.Option("--watch", help="Show its progress until it has ended.")]
_TABLES = "Of tables"
_ONLY_TABLES = (".csv", ".parquet", ".pq")


@app.command()
def submit(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="s3://bucket/key, file:///path or a path.")],
    output: Annotated[str, typer.Option(help="Prefix of what is written, likewise.")] = ".",
    column: Annotated[str | None, typer.Option(rich_help_panel=_TABLES, help="INPUT is a table: its prompts.")] = None,
    id_column: Annotated[
        str | None, typer.Option(rich_help_panel=_TABLES, help="Names of its rows. Default: their numbers.")
    ] = None,
    system: Annotated[str | None, typer.Option(rich_help_panel=_TABLES, help="System prompt of all rows.")] = None,
    system_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, rich_help_panel=_TABLES, help="Read it from a file.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(rich_help_panel=_TABLES, help="Default: the one registered model.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, rich_help_panel=_TABLES)] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, rich_help_panel=_TABLES)] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0, rich_help_panel=_TABLES)] = None,
    seed: Annotated[int | None, typer.Option(min=0, rich_help_panel=_TABLES)] = None,
    stop: Annotated[list[str] | None, typer.Option(rich_help_panel=_TABLES, help="May be repeated.")] = None,
    endpoint: Annotated[str, typer.Option(help="Default: that of the lines; of tables, chat completions.")] = "",
    window: Annotated[str, typer.Option(metavar="TIME", help="Until it expires: 30m, 24h, at most 7d.")] = "24h",
    webhook: Annotated[str, typer.Option(metavar="URL", help="A gateway calls it at the batch's end.")] = "",
    watch: Watch = False,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """Hand a file to the bulk workers. Prints the batch's id; with --watch, exit code 1 unless it is completed."""
    if system_file is not None:
        if system is not None:
            raise typer.BadParameter("give --system or --system-file, not both", param_hint="--system")
        system = system_file.read_text(encoding="utf-8").removesuffix("\n")
    body: dict[str, Any] = {
        "max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed, "stop": stop,
    }  # fmt: skip
    body = {name: value for name, value in body.items() if value is not None}
    if column is None and (body or system is not None or id_column or model):
        raise typer.BadParameter("these options are for tables; name the prompts' column", param_hint="--column")
    _check_source(source, column)
    rows = None
    if column is not None:
        if endpoint == "/v1/responses" and "max_tokens" in body:
            body["max_output_tokens"] = body.pop("max_tokens")
        rows = PromptColumn(column=column, body=body, id_column=id_column, system=system)

    async def do(store: BatchStore) -> View:
        name = ""
        if rows is not None:
            async with AsyncClient(config.redis_url(redis_url)) as client:
                name = await client._registry.resolve(model)
        with continued(config.traceparent()):
            batch = make_batch(
                source, output, now=await store.now(), window=window, endpoint=endpoint, model=name, rows=rows,
                webhook=webhook,
            )  # fmt: skip
        await store.create(batch)
        return await store.view(batch.id)

    view = _run(redis_url, do)
    if not as_json:
        typer.echo(view.batch.id)
    elif not watch:
        # Else the first line of the watch says it.
        print_json(_as_json(view))
    if watch:
        _watch(view.batch.id, as_json, redis_url)


def _check_source(source: str, column: str | None) -> None:
    """What can be told here and now, rather than by a batch that fails."""
    if "://" not in source and not Path(source).is_file():
        raise typer.BadParameter(
            f"there is no file {source} here; one that only the bulk workers see is file:///PATH", param_hint="INPUT"
        )
    suffix = Path(source).suffix.lower()
    if column is None and suffix in _ONLY_TABLES:
        raise typer.BadParameter(f"a {suffix} file is a table; name the prompts' column", param_hint="--column")


@app.command()
def status(batch_id: BatchId, watch: Watch = False, as_json: AsJson = False, redis_url: RedisUrl = None) -> None:
    """Show how far a batch has come. With --watch, exit code 1 unless it is completed in the end."""
    if watch:
        _watch(batch_id, as_json, redis_url)
        return

    async def do(store: BatchStore) -> tuple[View, float]:
        return await store.view(batch_id), await store.now()

    view, now = _run(redis_url, do)
    glance = Paces().glance(view, now)
    if as_json:
        print_json({**_as_json(view), "progress": glance})
        return
    typer.echo(line_of(glance))
    _print_end(view)


@app.command()
def cancel(batch_id: BatchId, redis_url: RedisUrl = None) -> None:
    """End a batch. Lines that have no answer by then get an error; the others stay."""

    async def do(store: BatchStore) -> View:
        await store.cancel(batch_id)
        return await store.view(batch_id)

    typer.echo(status_of(_run(redis_url, do)))


@app.command()
def resume(batch_id: BatchId, redis_url: RedisUrl = None) -> None:
    """Try a batch that has a problem again now, and not when its pause is over."""

    async def do(store: BatchStore) -> View:
        if not await store.resume(batch_id):
            view = await store.view(batch_id)
            raise BatchNotFound(f"{batch_id} is {view.batch.status}; there is nothing to resume")
        return await store.view(batch_id)

    typer.echo(status_of(_run(redis_url, do)))


@app.command("list")
def list_(
    count: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 20,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """List batches, newest first."""
    views = _run(redis_url, lambda store: store.newest(count=count))
    if as_json:
        print_json([_as_json(view) for view in views])
        return
    table = Table(Column("batch", overflow="fold"), "status", "lines", "completed", "failed", "age", "input")
    now = time.time()
    for view in views:
        batch, progress = view.batch, view.progress
        cells = (
            batch.id, str(status_of(view)), f"{batch.total:,}", f"{progress.completed:,}", f"{progress.failed:,}",
            f"{(now - batch.created_at) / 60:,.0f} min", batch.input,
        )  # fmt: skip
        table.add_row(*(Text(printable(cell)) for cell in cells))
    print_table(table)


def _watch(batch_id: str, as_json: bool, redis_url: str | None) -> None:
    view = watch_batch(redis_url, batch_id, _as_json, as_json)
    if not as_json:
        _print_end(view)
    if view.batch.status is not BatchStatus.COMPLETED:
        raise typer.Exit(1)


def _print_end(view: View) -> None:
    """What was wrong with the file, and where its answers are."""
    batch = view.batch
    for error in batch.errors:
        where = "" if error.line is None else f"line {error.line}: "
        typer.echo(printable(f"{where}{error.message} [{error.code}]"))
    for what, there, url in (
        ("output", batch.output_file_id, output_url(batch)), ("errors", batch.error_file_id, errors_url(batch))
    ):  # fmt: skip
        if there:
            typer.echo(printable(f"{what}: {url}"))


def _as_json(view: View) -> dict[str, Any]:
    batch = view.batch
    return {
        **describe(view),
        "input": batch.input,
        "output": output_url(batch) if batch.output_file_id else None,
        "errors_output": errors_url(batch) if batch.error_file_id else None,
    }


def _run(redis_url: str | None, do: Callable[[BatchStore], Awaitable[T]]) -> T:
    async def run() -> T:
        connection = Connection(config.redis_url(redis_url))
        try:
            return await do(BatchStore(connection))
        finally:
            await connection.close()

    return asyncio.run(run())
