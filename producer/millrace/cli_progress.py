"""How far a batch has come, for people at a terminal: a bar with its figures, or one line."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from millrace_schemas.batch import BatchStatus

from .bulk.glance import Glance
from .overview_rows import age, per_second, percent, printable, share_of

#: Columns of a bar, at most.
_BAR = 60
_STYLES = {
    BatchStatus.COMPLETED: "green",
    BatchStatus.FAILED: "red",
    BatchStatus.EXPIRED: "red",
    BatchStatus.CANCELLED: "yellow",
    BatchStatus.CANCELLING: "yellow",
}


def render(glance: Glance, away: str = "") -> RenderableType:
    """Name and status, bar and figures, and whatever holds it up; `away` says why the figures are old."""
    style = _STYLES.get(glance.status, "cyan")
    head = Text.assemble(
        printable(glance.id), " ", (printable(glance.file), "dim"), " ", (glance.status.replace("_", " "), style)
    )
    head.overflow = "fold"
    bar = Table.grid(
        Column(width=4, justify="right"), Column(max_width=_BAR, ratio=1), padding=(0, 1, 0, 0), expand=True
    )
    share = share_of(glance)
    bar.add_row(percent(share), ProgressBar(1.0, share, width=_BAR, complete_style=style, finished_style=style))
    parts: list[RenderableType] = [head, bar]
    if glance.status is not BatchStatus.VALIDATING:
        parts.append(_figures(glance))
    if glance.problem is not None:
        parts.append(Text(printable(f"waiting: {glance.problem}"), style="yellow"))
    if away:
        parts.append(Text(printable(away), style="yellow"))
    return Group(*parts)


def line_of(glance: Glance) -> str:
    """The same in one line, for logs."""
    line = f"{glance.status}: {glance.completed:,} completed, {glance.failed:,} failed of {glance.total:,}"
    if glance.status is BatchStatus.VALIDATING:
        line += f", {percent(glance.checked)} validated"
    for figure in _pace(glance):
        line += f", {figure}"
    if glance.problem is not None:
        line += f"; waiting: {glance.problem}"
    return printable(line)


def _figures(glance: Glance) -> Text:
    text = Text(f"{glance.ended:,} of {glance.total:,}")
    if glance.failed:
        text.append(f"  {glance.failed:,} failed", style="red")
    for figure in _pace(glance):
        text.append(f"  {figure}")
    text.overflow = "fold"
    return text


def _pace(glance: Glance) -> list[str]:
    if glance.rate is None:
        return []
    figures = [f"{per_second(glance.rate)} lines/s"]
    if glance.token_rate:
        figures.append(f"{glance.token_rate:,.0f} tok/s")
    if glance.eta is not None:
        figures.append(f"{age(glance.eta)} left")
    return figures
