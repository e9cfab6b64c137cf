"""`millrace bench queue`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from millrace.termination import terminated_as_exit
from millrace_schemas import MillraceError

from . import queue_bench
from .environment import describe_host
from .queue_table import show


def queue(
    jobs: Annotated[int, typer.Option(min=1, help="Of each system; fewer where it says so.")] = 20_000,
    systems: Annotated[str, typer.Option(help=f"Comma-separated: {', '.join(queue_bench.SYSTEMS)}.")] = ",".join(
        queue_bench.SYSTEMS
    ),
    repeats: Annotated[int, typer.Option(min=1, help="The fastest counts.")] = 1,
    deadline: Annotated[float, typer.Option(min=1.0, help="Seconds that one run of a system may take.")] = 180.0,
    python: Annotated[
        list[str] | None,
        typer.Option(
            help="arq=/path/to/python: the Python in whose environment a system is installed. May be repeated."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a system.")] = False,
) -> None:
    """Jobs that cost nothing through Millrace's queue and through RQ, arq, taskiq and Celery, each on its own Redis.

    Exit code 1 when Millrace gave no figures, or wrong answers; another system without figures is only named.
    """
    environment = describe_host()
    try:
        load = queue_bench.Load(jobs, _systems(systems), repeats, deadline, _pythons(python or []))
        rows = []
        with terminated_as_exit():
            for row in queue_bench.run(load):
                rows.append(row)
                if as_json:
                    typer.echo(json.dumps({**row, **environment}))
    except (MillraceError, ValueError) as e:
        typer.echo(f"error: {e}", err=True)
        raise typer.Exit(1) from e
    if not as_json:
        show(rows, environment)
    if any("problem" in row for row in rows if row["system"].startswith("millrace")):
        raise typer.Exit(1)


def _systems(names: str) -> tuple[str, ...]:
    chosen = tuple(name.strip() for name in names.split(","))
    for name in chosen:
        if name not in queue_bench.SYSTEMS:
            raise ValueError(f"--systems names {name!r}; there are {', '.join(queue_bench.SYSTEMS)}")
    return chosen


def _pythons(given: list[str]) -> dict[str, str]:
    modules = sorted({system.module for system in queue_bench.SYSTEMS.values()})
    found = {}
    for word in given:
        module, _, path = word.partition("=")
        if module not in modules or not path:
            raise ValueError(f"--python is {word!r}; it must be one of {', '.join(modules)}, then = and a path")
        program = shutil.which(path)
        if program is None:
            raise ValueError(f"--python {module}: {path} is no program that can be run")
        # Links are kept: by its own path, a Python finds its environment.
        found[module] = str(Path(program).absolute())
    return found
