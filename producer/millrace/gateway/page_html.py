"""The status page as HTML: static/page.html with the figures put in. Everything from outside is escaped here."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from millrace import ModelInfo
from millrace.overview import Overview
from millrace.overview_rows import COLUMNS, NUMBERS, printable, rows_of

from .batches_html import left_out, progress
from .history import History
from .queue_plots import plots_of

_TEMPLATE = Template(Path(__file__).parent.joinpath("static", "page.html").read_text(encoding="utf-8"))
#: Where a page has more room for a heading than a terminal.
_HEADINGS: Mapping[str, str] = {
    "oldest": "oldest waits",
    "KV": "KV use",
    "hits": "hit rate",
    "tokens": "tokens out",
    "beat": "last beat",
    "left": "time left",
}
_CAPTIONS: Mapping[str, str] = {
    "queues": "Queues by model and lane",
    "workers": "Workers whose heartbeat lives",
    "batches": "Bulk files that have not ended, and the newest that have",
    "failures": "The newest jobs that failed or expired",
}
#: In the place of a table without rows.
_EMPTY: Mapping[str, str] = {
    "queues": "No model is registered; start a worker: <code>millrace worker --model NAME</code>",
    "workers": "No worker is alive; jobs wait until one is.",
    "batches": "There is no bulk file; hand one in: <code>millrace batch submit INPUT</code>",
    "failures": "No job failed or expired within a day.",
}


def render(overview: Overview, history: History, *, every: float, problem: str = "") -> str:
    """The page, which is to look again `every` so many seconds.

    `problem` says why there is no overview, and then stands above everything.
    """
    rows = rows_of(overview, history.throughput)
    empty = dict.fromkeys(_EMPTY, "Not known.") if problem else _EMPTY
    cells = _html(rows, overview)
    tables = {name: _table(name, cells[name]) if cells[name] else _none(empty[name]) for name in COLUMNS}
    tables["batches"] += left_out(overview.bulk)
    return _TEMPLATE.substitute(
        tables,
        every=f"{every:g}",
        problem=escape(printable(problem)),
        summary="" if problem else _summary(overview),
        plots="".join(
            f'<section class="model"><h3>{escape(printable(queue.model))}</h3>'
            f'<div class="plots">{plots_of(queue, history.of(queue.model))}</div></section>'
            for queue in overview.queues
        ),
        models="".join(_option(model) for model in overview.models),
    )


def _html(rows: Mapping[str, Sequence[Sequence[str]]], overview: Overview) -> dict[str, list[list[str]]]:
    """The cells as HTML; progress is more than its text."""
    cells = {name: [[escape(cell) for cell in row] for row in rows[name]] for name in COLUMNS}
    at = COLUMNS["batches"].index("progress")
    for row, batch in zip(cells["batches"], overview.bulk.batches, strict=True):
        row[at] = progress(batch)
    return cells


def _summary(overview: Overview) -> str:
    """The page in a line, and when it was true: a page that hangs must not look like one that lives."""
    lanes = [lane for queue in overview.queues for lane in queue.lanes.values()]
    parts = (
        _count(sum(len(queue.workers) for queue in overview.queues), "worker"),
        f"{sum(lane.in_flight for lane in lanes):,} in flight",
        f"{sum(lane.waiting for lane in lanes):,} waiting",
    )
    at = max((queue.at for queue in overview.queues), default=None)
    when = "" if at is None else f" <time>{time.strftime('%H:%M:%S', time.gmtime(at))} UTC</time>"
    return f"<strong>{', '.join(parts)}</strong>{when}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _none(text: str) -> str:
    return f'<p class="none">{text}</p>'


def _table(name: str, rows: Sequence[Sequence[str]]) -> str:
    columns = COLUMNS[name]
    head = "".join(f'<th scope="col"{_kind(column)}>{_heading(column)}</th>' for column in columns)
    body = "".join(f"<tr>{_cells(columns, row)}</tr>" for row in rows)
    caption = escape(_CAPTIONS[name])
    return f'<table id="{name}"><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _cells(columns: Sequence[str], row: Sequence[str]) -> str:
    # A phone shows a row as lines, each with its heading.
    pairs = zip(columns, row, strict=True)
    return "".join(f'<td data-label="{_heading(column)}"{_kind(column)}>{cell}</td>' for column, cell in pairs)


def _heading(column: str) -> str:
    return escape(_HEADINGS.get(column, column))


def _kind(column: str) -> str:
    return ' class="number"' if column in NUMBERS else f' class="{escape(column)}"'


def _option(model: ModelInfo) -> str:
    chat = "yes" if model.has_chat_template else "no"
    return f'<option value="{escape(model.name)}" data-chat="{chat}">{escape(printable(model.name))}</option>'
