"""`millrace bench host`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

WORKLOADS = ("decode", "churn")


def host(
    sequences: Annotated[str, typer.Option(help="Comma-separated numbers of running ones.")] = "1,64,256,512,1024",
    workload: Annotated[str, typer.Option(help=f"Comma-separated: {', '.join(WORKLOADS)}.")] = ",".join(WORKLOADS),
    steps: Annotated[int, typer.Option(min=1, help="That count, of each run.")] = 300,
    repeats: Annotated[int, typer.Option(min=1, help="The quickest counts.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a workload and number.")] = False,
) -> None:
    """What a step costs the host, by phase, with a model that computes nothing; needs no GPU."""
    from . import host_bench
    from .environment import describe_host

    try:
        counts, names = _counts(sequences), _workloads(workload)
    except ValueError as e:
        typer.echo(f"error: {e}", err=True)
        raise typer.Exit(1) from e
    environment = describe_host()
    costs = [host_bench.run(name, count, steps, repeats) for name in names for count in counts]
    if as_json:
        for cost in costs:
            typer.echo(json.dumps({**msgspec.structs.asdict(cost), "steps": steps, "repeats": repeats, **environment}))
    else:
        _show(costs, environment)


def _counts(sequences: str) -> list[int]:
    try:
        counts = [int(count) for count in sequences.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise ValueError(f"--sequences is {sequences!r}; it takes numbers from 1 on, with commas between them")
    return counts


def _workloads(workload: str) -> list[str]:
    names = workload.split(",")
    if not set(names) <= set(WORKLOADS):
        raise ValueError(f"--workload is {workload!r}; there are {', '.join(WORKLOADS)}")
    return names


def _show(costs: Sequence[msgspec.Struct], environment: Mapping[str, str]) -> None:
    table = Table(title="Millrace, the host's share of a step: microseconds")
    for name in costs[0].__struct_fields__:
        table.add_column(name, justify="left" if name == "workload" else "right")
    for cost in costs:
        table.add_row(
            *(f"{value:,.0f}" if isinstance(value, float) else str(value) for value in msgspec.structs.astuple(cost))
        )
    console = Console(width=130)
    console.print(table)
    console.print(", ".join(f"{name} {value}" for name, value in environment.items()), highlight=False)
