"""What `millrace bench chaos` did and found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def show(found: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """Prints it."""
    table = Table(title=f"Millrace, a bulk file of {found['lines']:,} lines under fire (seed {found['seed']})")
    table.add_column("")
    table.add_column("times", justify="right")
    for blow, times in found["blows"].items():
        table.add_row(blow, f"{times:,}")
    table.add_section()
    table.add_row("in all", f"{sum(found['blows'].values()):,}")
    table.add_row("jobs that ended at a later delivery", f"{found['redeliveries']:,}")
    table.add_row("jobs that ended twice, made anew", f"{found['ended_again']:,}")
    table.add_row("lines in the output file", f"{found['completed']:,}")
    table.add_row("lines in the error file", f"{found['failed']:,}")
    table.add_row("seconds", f"{found['seconds']:,}")
    table.add_section()
    faults = found["faults"]
    table.add_row("every line once, nothing left behind", "NO" if faults else "yes")
    console = Console()
    console.print(table)
    console.print(", ".join(f"{name} {value}" for name, value in environment.items()), highlight=False)
    for fault in faults:
        console.print(f"fault: {fault}", highlight=False, markup=False)
    if faults:
        console.print(f"evidence: {found['evidence']}", highlight=False, markup=False)
