"""`millrace bench picking`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table


def picking(
    jobs: Annotated[int, typer.Option(min=1, help="Of the batch lane, in random order.")] = 600,
    systems: Annotated[int, typer.Option(min=1, help="System prompts that they share.")] = 16,
    system_tokens: Annotated[int, typer.Option(min=16, help="Of each of these.")] = 2048,
    own: Annotated[int, typer.Option(min=1, help="Tokens of a job behind the system prompt.")] = 64,
    answer: Annotated[int, typer.Option(min=2, help="Mean tokens of an answer.")] = 128,
    rows: Annotated[int, typer.Option(min=1, help="Most sequences of a step.")] = 64,
    blocks: Annotated[int, typer.Option(min=1, help="Of 16 tokens, that the cache has.")] = 2000,
    ahead: Annotated[
        int | None, typer.Option(min=0, help="Jobs that wait in the engine. Default: an eighth of the rows.")
    ] = None,
    prefix_waits: Annotated[str, typer.Option(help="Comma-separated; each is tried. 0: order of arrival.")] = "0,2,10",
    orders: Annotated[int, typer.Option(min=1, help="Random orders; means count.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a wait.")] = False,
) -> None:
    """What picking batch jobs by shared prefixes saves, by the scheduler alone on a reckoned clock; needs no GPU."""
    from .picking_bench import Traffic, run

    try:
        waits = [float(wait) for wait in prefix_waits.split(",")]
        if not all(0 <= wait < float("inf") for wait in waits):
            raise ValueError
    except ValueError:
        typer.echo(f"error: --prefix-waits is {prefix_waits!r}; it takes seconds with commas between them", err=True)
        raise typer.Exit(1) from None
    needed = -(-(system_tokens + own + answer * 3 // 2) // 16) + 1
    if blocks < needed:
        typer.echo(f"error: --blocks is {blocks}, and the longest job needs {needed}", err=True)
        raise typer.Exit(1)
    traffic = Traffic(jobs, systems, system_tokens, own, answer, rows, blocks, ahead)
    results = [run(traffic, wait, orders) for wait in waits]
    if as_json:
        for result in results:
            typer.echo(json.dumps({**msgspec.structs.asdict(result), **msgspec.structs.asdict(traffic)}))
    else:
        _show(results)


def _show(results: Sequence[msgspec.Struct]) -> None:
    table = Table(title="Millrace, batch jobs picked by shared prefixes")
    for name in results[0].__struct_fields__:
        table.add_column(name, justify="right")
    for result in results:
        table.add_row(*(f"{value:,.2f}" for value in msgspec.structs.astuple(result)))
    Console(width=130).print(table)
