"""Figures beside what they should be, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def met(name: str, value: float, target: float) -> bool:
    """Whether a figure is what it should be: rates (`..._per_s`) at least, all others at most."""
    return value >= target if name.endswith("_per_s") else value <= target


def show_figures(
    title: str,
    rows: Mapping[str, str],
    targets: Mapping[str, float],
    found: Mapping[str, Any],
    environment: Mapping[str, str],
) -> None:
    """Prints those of `rows` (name of a figure, and what a reader calls it) that were found."""
    table = Table(title=title)
    table.add_column("figure")
    for heading in ("measured", "target", ""):
        table.add_column(heading, justify="right")
    for name, words in rows.items():
        if name not in found:
            continue
        target, verdict = "", ""
        if name in targets:
            target = f"{'>=' if name.endswith('_per_s') else '<='} {targets[name]:,g}"
            verdict = "met" if met(name, found[name], targets[name]) else "MISSED"
        table.add_row(words, f"{found[name]:,g}", target, verdict)
    console = Console()
    console.print(table)
    console.print(", ".join(f"{name} {value}" for name, value in environment.items()), highlight=False)
