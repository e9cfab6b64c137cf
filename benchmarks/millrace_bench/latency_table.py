"""The figures of `millrace bench latency`, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from .latency_figures import complaint
from .percentiles import SHARES


def show(title: str, rows: Iterable[Mapping[str, Any]], environment: Mapping[str, str]) -> None:
    """Prints a row for each threshold and rate, and which rates were too much."""
    rows = list(rows)
    table = Table(title=title)
    columns = ("long prefill", "rate", "requests", "served/s", "tok/s", "TTFT", "ITL", "p99/p50", "E2E")
    for heading in (*columns, "good/s", "kept up"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["long_prefill_token_threshold"] or "-"),
            f"{row['rate']:g}" if isinstance(row["rate"], float) else row["rate"],
            f"{row['requests']:,}",
            f"{row['served_req_s']:,.2f}",
            f"{row['output_tok_s']:,.0f}",
            *(_percentiles(row, name) for name in ("ttft", "itl")),
            _cell(row["itl_p99_over_p50"], 2),
            _percentiles(row, "e2e"),
            _cell(row["goodput_req_s"], 2),
            {None: "-", True: "yes", False: "NO"}[row["kept_up"]],
        )
    console = Console(width=160)
    console.print(table)
    console.print(f"Times in ms: {' / '.join(SHARES)}.", highlight=False)
    for row in rows:
        if words := complaint(dict(row)):
            console.print(words, highlight=False)
    console.print(", ".join(f"{name} {value}" for name, value in environment.items()), highlight=False)


def _percentiles(row: Mapping[str, Any], name: str) -> str:
    values = [row[f"{name}_{share}_ms"] for share in SHARES]
    most = max((value for value in values if value is not None), default=0.0)
    return " / ".join(_cell(value, 1 if most < 100 else 0) for value in values)


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
