"""The status page as HTML: static/page.html with the tables put in. Everything from outside is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from millrace import ModelInfo
from millrace.overview import Overview, Throughput
from millrace.overview_rows import COLUMNS, printable, rows_of

_TEMPLATE = Template(Path(__file__).parent.joinpath("static", "page.html").read_text(encoding="utf-8"))


def render(overview: Overview, problem: str = "") -> str:
    """The page; `problem` is what stands above everything."""
    rows = rows_of(overview, Throughput())
    tables = {name: _table(name, columns, rows[name]) for name, columns in COLUMNS.items()}
    return _TEMPLATE.substitute(
        tables, problem=escape(printable(problem)), models="".join(_option(model) for model in overview.models)
    )


def _table(name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(f"<tr>{_cells(columns, row)}</tr>" for row in rows)
    return f'<table id="{name}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _cells(columns: Sequence[str], row: Sequence[str]) -> str:
    # A phone shows a row as lines, each with its heading.
    pairs = zip(columns, row, strict=True)
    return "".join(f'<td data-label="{escape(column)}">{escape(cell)}</td>' for column, cell in pairs)


def _option(model: ModelInfo) -> str:
    chat = "yes" if model.has_chat_template else "no"
    return f'<option value="{escape(model.name)}" data-chat="{chat}">{escape(printable(model.name))}</option>'
