"""`millrace top`: queues, workers and failures, live in a terminal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from millrace_schemas import QueueUnavailable

from . import config
from .async_client import AsyncClient
from .cli_output import RedisUrl, print_json
from .overview import Overview, Throughput, read_overview
from .overview_rows import COLUMNS, NUMBERS, printable, rows_of
from .termination import terminated_as_exit

#: What 80 columns have no room for: the job of a failure.
_LEFT_OUT = "job"


def top(
    interval: Annotated[float, typer.Option(min=0.2, metavar="SECONDS", help="Between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print once and end, as without a terminal.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for every look.")] = False,
    redis_url: RedisUrl = None,
) -> None:
    """Watch queues, workers and what could not be run. Ctrl-C ends it."""
    console = Console()
    with terminated_as_exit():
        try:
            asyncio.run(_top(console, config.redis_url(redis_url), interval, once, as_json))
        except KeyboardInterrupt:
            # Ctrl-C is how it ends.
            return


async def _top(console: Console, url: str, interval: float, once: bool, as_json: bool) -> None:
    # The next look is the retry.
    async with AsyncClient(url, retry_for=1.0) as client:
        # The first look is outside of the loop: without Redis the command fails instead of waiting.
        overview = await read_overview(client)
        if as_json:
            print_json(overview)
            if not once:
                async for found in _looks(client, interval):
                    # A line is an overview; an outage is a gap.
                    if isinstance(found, Overview):
                        print_json(found)
        elif once or not console.is_terminal:
            console.print(render(overview, Throughput()))
        else:
            await _watch(console, client, overview, interval)


async def _watch(console: Console, client: AsyncClient, overview: Overview, interval: float) -> None:
    throughput = Throughput()
    throughput.update(worker for queue in overview.queues for worker in queue.workers)
    with Live(render(overview, throughput), console=console, screen=True, auto_refresh=False) as live:
        async for found in _looks(client, interval):
            if isinstance(found, Overview):
                overview, problem = found, ""
                throughput.update(worker for queue in overview.queues for worker in queue.workers)
            else:
                problem = f"not up to date: {found}"
            live.update(render(overview, throughput, problem), refresh=True)


async def _looks(client: AsyncClient, interval: float) -> AsyncIterator[Overview | QueueUnavailable]:
    """What is there after every interval, or why nobody knows."""
    while True:
        await asyncio.sleep(interval)
        try:
            yield await read_overview(client)
        except QueueUnavailable as e:
            yield e


def render(overview: Overview, throughput: Throughput, problem: str = "") -> RenderableType:
    """The tables; `problem` stands above them."""
    rows = rows_of(overview, throughput)
    workers = [worker for queue in overview.queues for worker in queue.workers]
    known = [rate for worker in workers if (rate := throughput.of(worker)) is not None]
    total = f", {sum(known):,.0f} output tokens/s" if known else ""
    count = f"{len(workers)} worker{'' if len(workers) == 1 else 's'}"
    parts: list[RenderableType] = [Text(printable(problem), style="red")] if problem else []
    if not overview.queues:
        parts.append(Text("no model is registered; start a worker: millrace worker --model NAME"))
    parts.append(Text(f"{count}{total}", style="bold"))
    parts += [_table(columns, rows[name]) for name, columns in COLUMNS.items() if rows[name]]
    return Group(*parts)


def _table(columns: tuple[str, ...], rows: list[list[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    shown = [i for i, name in enumerate(columns) if name != _LEFT_OUT]
    for i in shown:
        number = columns[i] in NUMBERS
        table.add_column(columns[i], justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in rows:
        # Text, as a string could hold rich's markup.
        table.add_row(*(Text(row[i]) for i in shown))
    return table
