"""The figures of `millrace bench kernels`, as a table."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from .kernel_bench import Figure


def show(model: str, figures: list[Figure], environment: Mapping[str, str]) -> None:
    """Prints them: the floor is what a copy on the device takes for the same bytes."""
    table = Table(title=f"Millrace, kernels at the shapes of {model}")
    table.add_column("kernel")
    for heading in ("rows", "us", "floor, us", "of the floor", "torch, us", "times as fast", "rate"):
        table.add_column(heading, justify="right")
    for figure in figures:
        table.add_row(figure.kernel, f"{figure.rows:,}", *_cells(figure))
    console = Console(width=150)
    console.print(table)
    for figure in figures:
        if figure.failed:
            console.print(f"{figure.kernel}, {figure.rows:,} rows: wrong: {figure.failed}", markup=False)
    console.print(", ".join(f"{name} {value}" for name, value in environment.items()), highlight=False)


def _cells(figure: Figure) -> list[str]:
    torchs, floor, spent = figure.torch_microseconds, figure.floor_microseconds, figure.microseconds
    if figure.failed:
        return ["WRONG", "-" if floor is None else f"{floor:,.1f}", *["-"] * 4]
    return [
        f"{spent:,.1f}",
        "-" if floor is None else f"{floor:,.1f}",
        "-" if floor is None else f"{floor / spent:.0%}",
        "-" if torchs is None else f"{torchs:,.1f}",
        "-" if torchs is None else f"{torchs / spent:.2f}",
        f"{figure.rate:,.2f} {figure.unit}",
    ]
