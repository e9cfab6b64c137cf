"""`millrace top`: queues, workers and failures, live in a terminal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from millrace_schemas import QueueUnavailable

from . import config
from .async_client import AsyncClient
from .bulk.glance import BulkFiles, Paces
from .cli_output import RedisUrl, print_json
from .overview import Overview, Throughput, read_overview
from .overview_rows import COLUMNS, NUMBERS, closed_of, printable, rows_of, sharing_of, tiers_of, trouble_of
from .termination import terminated_as_exit

#: What 80 columns have no room for: the job of a failure, and of a batch what its file's name says well enough.
_LEFT_OUT = frozenset({"job", "batch", "tokens/s"})
_BAR = 6
#: Batches of an overview that a terminal shows.
_BATCHES = 8


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
        paces = Paces()
        overview = await read_overview(client, paces)
        if as_json:
            print_json(overview)
            if not once:
                async for found in _looks(client, paces, interval):
                    # A line is an overview; an outage is a gap.
                    if isinstance(found, Overview):
                        print_json(found)
        elif once or not console.is_terminal:
            console.print(render(overview, Throughput()))
        else:
            await _watch(console, client, paces, overview, interval)


async def _watch(console: Console, client: AsyncClient, paces: Paces, overview: Overview, interval: float) -> None:
    throughput = Throughput()
    throughput.update(worker for queue in overview.queues for worker in queue.workers)
    with Live(render(overview, throughput), console=console, screen=True, auto_refresh=False) as live:
        async for found in _looks(client, paces, interval):
            if isinstance(found, Overview):
                overview, problem = found, ""
                throughput.update(worker for queue in overview.queues for worker in queue.workers)
            else:
                problem = f"not up to date: {found}"
            live.update(render(overview, throughput, problem), refresh=True)


async def _looks(client: AsyncClient, paces: Paces, interval: float) -> AsyncIterator[Overview | QueueUnavailable]:
    """What is there after every interval, or why nobody knows."""
    while True:
        await asyncio.sleep(interval)
        try:
            yield await read_overview(client, paces)
        except QueueUnavailable as e:
            yield e


def render(overview: Overview, throughput: Throughput, problem: str = "") -> RenderableType:
    """The tables; `problem` stands above them."""
    rows = rows_of(overview, throughput)
    shown = msgspec.structs.replace(overview.bulk, batches=overview.bulk.batches[:_BATCHES])
    rows["batches"] = rows["batches"][:_BATCHES]
    workers = [worker for queue in overview.queues for worker in queue.workers]
    known = [rate for worker in workers if (rate := throughput.of(worker)) is not None]
    total = f", {sum(known):,.0f} output tokens/s" if known else ""
    count = f"{len(workers)} worker{'' if len(workers) == 1 else 's'}"
    sharing = sharing_of(workers)
    parts: list[RenderableType] = [Text(printable(problem), style="red")] if problem else []
    if not overview.queues:
        parts.append(Text("no model is registered; start a worker: millrace worker --model NAME"))
    parts.append(Text(f"{count}{total}", style="bold"))
    parts += [Text(words, style="dim") for words in (sharing, tiers_of(workers)) if words]
    closed = closed_of(workers)
    if closed:
        parts.append(Text(printable(closed), style="yellow"))
    for name, columns in COLUMNS.items():
        if rows[name]:
            parts.append(_table(columns, rows[name]))
        if name == "batches":
            parts += _troubles(shown)
    return Group(*parts)


def _troubles(bulk: BulkFiles) -> list[RenderableType]:
    """What stands below the table of batches: why some of them do not move, and how many it left out."""
    lines: list[RenderableType] = [
        Text(f"{printable(batch.file)}: {trouble}", style="yellow" if batch.problem else "red")
        for batch in bulk.batches
        if (trouble := trouble_of(batch))
    ]
    if bulk.left_out > 0:
        lines.append(Text(f"and {bulk.left_out:,} more that have not ended: millrace batch list", style="dim"))
    return lines


def _table(columns: tuple[str, ...], rows: list[list[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    shown = [i for i, name in enumerate(columns) if name not in _LEFT_OUT]
    for i in shown:
        number = columns[i] in NUMBERS
        whole = number or columns[i] == "progress"
        table.add_column(columns[i], justify="right" if number else "left", no_wrap=whole, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(columns[i], row[i]) for i in shown))
    return table


def _cell(column: str, text: str) -> RenderableType:
    # Text, as a string could hold rich's markup.
    if column != "progress":
        return Text(text)
    bar = ProgressBar(100, float(text.removesuffix("%")), width=_BAR)
    cell = Table.grid(padding=(0, 1, 0, 0))
    cell.add_row(bar, Text(text))
    return cell
