"""The rows of `millrace bench prefix`, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from .results import ENGINE, TITLES, UNGROUPED, Row
from .tier_table import is_of_tiers, tier_tables

_WIDTH = 150


def show(model: str, rows: Sequence[Row], environment: Mapping[str, str]) -> None:
    """Prints decode and whole runs of each group, then first tokens, restarts, and what tiers cost."""
    # Where nobody says how wide the page is, it is wide enough.
    console = Console(width=max(_WIDTH, Console().width))
    others = [row for row in rows if is_of_tiers(row)]
    groups = [row for row in rows if not is_of_tiers(row)]
    for table in ([_groups(model, groups)] if groups else []) + tier_tables(model, others):
        console.print(table)
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.failed:
            reason = f"{row.failed} ({row.log})" if row.log else row.failed
            reasons.setdefault((row.engine, reason), []).append(row.workload)
    for (engine, reason), workloads in reasons.items():
        console.print(f"{TITLES[engine]}, {'; '.join(workloads)}: {reason}", markup=False)
    console.print(", ".join(f"{name} {value}" for name, value in environment.items()), highlight=False)


def _groups(model: str, rows: Sequence[Row]) -> Table:
    peers = [name for name in dict.fromkeys(row.engine for row in rows) if name not in (ENGINE, UNGROUPED)]
    headings = ["decode tok/s", "ungrouped", "times", "steps that shared", "prefix computed", "whole run tok/s"]
    for peer in peers:
        headings += [TITLES[peer], f"Millrace / {TITLES[peer]}"]
    table = Table(title=f"Millrace, {model}: requests behind shared system prompts")
    table.add_column("requests")
    for heading in headings:
        table.add_column(heading, justify="right")
    by_name = {(row.engine, row.workload): row for row in rows if not row.failed}
    for workload in dict.fromkeys(row.workload for row in rows if row.engine == ENGINE):
        own, apart = by_name.get((ENGINE, workload)), by_name.get((UNGROUPED, workload))
        line = [_decode(own), _decode(apart), _times(own, apart), *_counts(own), _rate(own)]
        for peer in peers:
            other = by_name.get((peer, workload))
            line += [_rate(other), f"{own.rate / other.rate:.2f}" if own and other else ""]
        table.add_row(workload, *line)
    return table


def _decode(row: Row | None) -> str:
    return "" if row is None else f"{row.figures['decode_tok_s']:,.0f}"


def _times(own: Row | None, apart: Row | None) -> str:
    return f"{own.figures['decode_tok_s'] / apart.figures['decode_tok_s']:.3f}" if own and apart else ""


def _counts(row: Row | None) -> tuple[str, str]:
    if row is None:
        return "", ""
    computed = row.figures.get("prefix_computed_times")
    return (
        f"{row.figures['shared_steps'] / row.figures['steps']:.0%}",
        "" if computed is None else f"{computed:.2f} times",
    )


def _rate(row: Row | None) -> str:
    return "" if row is None else f"{row.rate:,.0f}"
