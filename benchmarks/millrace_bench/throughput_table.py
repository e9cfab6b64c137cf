"""The rows of `millrace bench throughput`, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from .redis_bench import TARGET_PERCENT
from .results import ENGINE, THROUGH_REDIS, TITLES, Row

_WIDTH = 150
_DETAILS = {
    "requests": "requests",
    "output_tokens": "output tokens",
    "seconds": "s",
    "output_tok_s": "output tok/s",
    "total_tok_s": "total tok/s",
    "steps": "steps",
    "sequences_per_step": "sequences a step",
    "host_ms_per_step": "host, ms a step",
    "wait_seconds": "waiting s",
    "preemptions": "preempted",
    "kv_waste": "KV waste",
}


def show(model: str, rows: Sequence[Row], environment: Mapping[str, str]) -> None:
    """Prints them: the engine alone, then all engines beside each other when there are others."""
    # Where nobody says how wide the page is, it is wide enough.
    console = Console(width=max(_WIDTH, Console().width))
    console.print(_engine(model, [row for row in rows if row.engine == ENGINE and not row.failed]))
    if any(row.engine != ENGINE for row in rows):
        console.print(_compared(model, rows))
    for row in rows:
        if row.failed:
            console.print(f"{TITLES[row.engine]}, {row.workload}: {row.failed} ({row.log})", markup=False)
    console.print(", ".join(f"{name} {value}" for name, value in environment.items()), highlight=False)


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of the comparison: a line for each workload, all engines' rates and what they are of ours."""
    engines = [ENGINE, *(name for name in dict.fromkeys(row.engine for row in rows) if name != ENGINE)]
    by_name = {(row.engine, row.workload): row for row in rows}
    headings, lines = ["workload", "tok/s of", TITLES[ENGINE]], []
    for engine in engines[1:]:
        headings += [TITLES[engine], "of the engine" if engine == THROUGH_REDIS else f"Millrace / {TITLES[engine]}"]
    for workload in dict.fromkeys(row.workload for row in rows):
        own = by_name.get((ENGINE, workload))
        of_total = any(row.by_total for row in rows if row.workload == workload and not row.failed)
        line = [workload, "all tokens" if of_total else "output", _rate(own)]
        for engine in engines[1:]:
            other = by_name.get((engine, workload))
            line += [_rate(other), _ratio(own, other)]
        lines.append(line)
    return headings, lines


def _engine(model: str, rows: Sequence[Row]) -> Table:
    table = Table(title=f"Millrace, {model}: engine alone")
    table.add_column("workload")
    for title in _DETAILS.values():
        table.add_column(title, justify="right")
    for row in rows:
        values = row.as_flat()
        table.add_row(row.workload, *(_cell(key, values[key]) for key in _DETAILS))
    return table


def _compared(model: str, rows: Sequence[Row]) -> Table:
    headings, lines = cells(rows)
    table = Table(title=f"{model}: engines beside each other")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < 2 else "right")
    for line in lines:
        table.add_row(*line)
    return table


def _rate(row: Row | None) -> str:
    if row is None:
        return ""
    if row.failed:
        return "failed"
    done = "" if row.share == 1 else f" ({row.share:.0%} done)"
    return f"{row.rate:,.0f}{done}" if row.rate >= 100 else f"{row.rate:,.1f}{done}"


def _ratio(own: Row | None, other: Row | None) -> str:
    if own is None or other is None or own.failed or other.failed or not own.rate or not other.rate:
        return ""
    if other.engine != THROUGH_REDIS:
        return f"{own.rate / other.rate:.2f}"
    percent = other.rate / own.rate * 100
    return f"{percent:.1f} % {'met' if percent >= TARGET_PERCENT else 'MISSED'}"


def _cell(key: str, value: object) -> str:
    if key == "kv_waste":
        return f"{value:.1%}"
    if key == "host_ms_per_step":
        return f"{value:.2f}"
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
