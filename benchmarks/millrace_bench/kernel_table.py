"""The figures of `millrace bench kernels`, as a table."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from .kernel_bench import Figure


def show(model: str, figures: list[Figure], environment: Mapping[str, str]) -> None:
    """Prints them."""
    table = Table(title=f"Millrace, kernels at the shapes of {model}")
    table.add_column("kernel")
    for heading in ("rows", "us", "torch, us", "times as fast", "rate"):
        table.add_column(heading, justify="right")
    for figure in figures:
        torchs = figure.torch_microseconds
        table.add_row(
            figure.kernel,
            f"{figure.rows:,}",
            f"{figure.microseconds:,.1f}",
            "-" if torchs is None else f"{torchs:,.1f}",
            "-" if torchs is None else f"{torchs / figure.microseconds:.2f}",
            f"{figure.rate:,.2f} {figure.unit}",
        )
    console = Console(width=120)
    console.print(table)
    console.print(", ".join(f"{name} {value}" for name, value in environment.items()), highlight=False)
