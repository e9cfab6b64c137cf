"""The rates of `millrace bench queue`, a line for each system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

#: What Millrace's rate of jobs should be, over that of the fastest other system.
TARGET = 3.0
_RATES = {
    "enqueue_per_s": "enqueued",
    "worker_per_s": "worked off",
    "read_per_s": "read",
    "jobs_per_s": "end to end",
}


def over_best(rows: Sequence[Mapping[str, Any]], rate: str = "jobs_per_s") -> float | None:
    """Millrace's rate over that of the fastest other system; None unless both are there."""
    ours = [row[rate] for row in rows if "problem" not in row and row["system"].startswith("millrace")]
    others = [row[rate] for row in rows if "problem" not in row and not row["system"].startswith("millrace")]
    return round(max(ours) / max(others), 2) if ours and others else None


def show(rows: Sequence[Mapping[str, Any]], environment: Mapping[str, str]) -> None:
    """Prints them."""
    table = Table(title="Small jobs through a queue: one producer, one worker, one Redis; jobs a second")
    table.caption = "CPU us: processor time of producer + worker + Redis, for a job end to end"
    for heading in ("system", "jobs", "right", *_RATES.values(), "CPU us", "load"):
        table.add_column(heading, justify="left" if heading.startswith("system") else "right")
    notes = []
    for row in rows:
        if "problem" in row:
            table.add_row(row["title"], f"{row['jobs']:,}", *("-" for _ in range(len(_RATES) + 3)))
            notes.append(f"{row['title']}: {row['problem']}")
            continue
        rates = (f"{row[name]:,}" for name in _RATES)
        cpu = " + ".join(f"{us:,}" for us in row["cpu_us"].values())
        table.add_row(row["title"], f"{row['jobs']:,}", f"{row['right']:,}", *rates, cpu, f"{row['load']:g}")
        versions = ", ".join(f"{name} {value}" for name, value in row["versions"].items())
        notes.append(f"{row['title']}: {row['delivery']}; {row['settings']}. {versions}")
    console = Console()
    console.print(table)
    for note in notes:
        console.print(note, highlight=False, markup=False)
    if (ratio := over_best(rows)) is not None:
        verdict = "met" if ratio >= TARGET else "MISSED"
        console.print(f"end to end over the fastest other: {ratio:g} (target {TARGET:g}: {verdict})", highlight=False)
    console.print(", ".join(f"{name} {value}" for name, value in environment.items()), highlight=False)
