"""The rows of `millrace bench prefix` that are about the tiers of the prefix cache, as tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.table import Table

from .copy_bench import LEAST_SHARE, NOT_MEASURED
from .first_token import TIERS
from .restart_bench import MOST_DELAY, MOST_OF_COLD
from .results import Row
from .zero_hit_bench import MOST_LOSS

_FIRST, _RESTART, _COPIES, _APART = "first token", "restart", "copies", "nothing shared"


def is_of_tiers(row: Row) -> bool:
    """Whether it is not about a group of requests."""
    return row.workload.startswith((_FIRST, _RESTART, _COPIES, f"{_APART}:"))


def tier_tables(model: str, rows: Sequence[Row]) -> list[Table]:
    """One for each kind of row that there is."""
    tables = []
    for kind, title, what in (
        (_FIRST, "to the first token of a request alone", _found),
        (_RESTART, "after kill -9 and a restart", _restart),
        (_COPIES, "for 1 GB of blocks between device and host", _copies),
        (_APART, "of requests that share nothing, with tiers", _loss),
    ):
        own = [row for row in rows if row.workload.startswith(kind)]
        if own:
            tables.append(_table(f"Millrace, {model}: milliseconds {title}", own, what))
    return tables


def _table(title: str, rows: Sequence[Row], what: Callable[[Row], str]) -> Table:
    table = Table(title=title)
    table.add_column("")
    for heading in ("ms", "least", "most"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for row in rows:
        if row.failed:
            # Why stands below the table.
            table.add_row(row.workload, "-" if row.failed.startswith(NOT_MEASURED) else "failed")
        else:
            values = (row.seconds, min(row.all_seconds), max(row.all_seconds))
            table.add_row(row.workload, *(f"{value * 1000:,.1f}" for value in values), what(row))
    return table


def _found(row: Row) -> str:
    figures = row.figures
    tokens = [f"{figures[f'{tier}_tokens']:,.0f} in {tier}" for tier in TIERS if f"{tier}_tokens" in figures]
    words = [" + ".join(tokens) or "nothing"]
    if "of_cold" in figures:
        words.append(f"{figures['of_cold']:.2f} of cold")
    if "loaded" in figures:
        words.append(f"loaded in {figures['loaded']:.0%} of the runs")
    return ", ".join(words)


def _restart(row: Row) -> str:
    figures = row.figures
    if "delay_seconds" in figures:
        verdict = _verdict(figures["delay_seconds"] <= MOST_DELAY)
        memory = f"with {figures['cpu_cache_gb']:g} GB of host memory, " if figures["cpu_cache_gb"] else ""
        return f"{memory}{figures['delay_seconds']:+.2f} s beside without, at most {MOST_DELAY:g}: {verdict}"
    if "read_blocks" in figures:
        return f"{figures['read_blocks']:,.0f} blocks read, after {figures['ready_seconds']:.2f} s until ready"
    if row.output_tokens == 0:
        return ""
    words = _found(row)
    if "of_cold" in figures:
        words += f", at most {MOST_OF_COLD:g}: {_verdict(figures['of_cold'] <= MOST_OF_COLD)}"
    return words


def _copies(row: Row) -> str:
    figures = row.figures
    verdict = _verdict(figures["share"] >= LEAST_SHARE)
    return (
        f"{figures['gb_s']:.1f} GB/s, {figures['share']:.0%} of the link's {figures['link_gb_s']:.1f}, at least "
        f"{LEAST_SHARE:.0%}: {verdict}; block by block {figures['share_scattered']:.0%}"
    )


def _loss(row: Row) -> str:
    figures = row.figures
    on, off = (
        f"{figures[f'{name}_tok_s']:,.0f} tok/s {name} tiers "
        f"({figures[f'{name}_tok_s_least']:,.0f} to {figures[f'{name}_tok_s_most']:,.0f})"
        for name in ("with", "without")
    )
    loss = figures["loss"]
    words = f"{loss:.2%} slower" if loss > 0 else f"{-loss:.2%} faster"
    return f"{on}, {off}: {words}, at most {MOST_LOSS:.0%} slower: {_verdict(loss <= MOST_LOSS)}"


def _verdict(met: bool) -> str:
    return "met" if met else "MISSED"
