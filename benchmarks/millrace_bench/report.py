"""All stored results as Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Sequence

from .bars_svg import Bar, Panel, draw
from .results import ENGINE, TITLES, Results, Row
from .throughput_table import cells

#: What stands between these is written anew by every report; the rest of the page is people's.
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
PICTURE = "images/throughput.svg"

_NEW_PAGE = f"""# Benchmarks

{BEGIN}
{END}
"""


def insert(page: str, results: Sequence[Results]) -> str:
    """`page` with its part between the markers written anew; a new page when it is empty.

    Raises ValueError when a page has no markers.
    """
    head, begin, rest = (page or _NEW_PAGE).partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no lines {BEGIN} and {END} to write between")
    return f"{head}{BEGIN}\n\n{_markdown(results)}\n{END}{tail}"


def picture(results: Sequence[Results]) -> str:
    """The newest results of each model on each device by each command, as bars."""
    newest: dict[tuple[str, str, str], Results] = {}
    for one in results:
        newest.setdefault((one.device, one.model, one.what), one)
    return draw([_panel(one) for one in newest.values()], list(TITLES.values()))


def _panel(results: Results) -> Panel:
    groups: dict[str, list[Bar]] = {}
    for row in _ordered(results.rows):
        if row.has_rate and not row.failed:
            cut = "" if row.share == 1 else f", {row.share:.0%} done"
            words = f"{row.rate:,.0f} tok/s{' with prompts' if row.by_total else ''}{cut}"
            groups.setdefault(row.workload, []).append(Bar(TITLES[row.engine], row.rate, words))
    return Panel(f"{results.model} on {results.device}, {results.date[:10]}", list(groups.items()))


def _markdown(results: Sequence[Results]) -> str:
    if not results:
        return "No results are stored yet.\n"
    plot = f"![Tokens a second of each engine on each workload]({PICTURE})\n"
    return "\n".join([plot, *(_section(one) for one in results)])


def _section(results: Results) -> str:
    every = _ordered(results.rows)
    rows = [row for row in every if row.has_rate or row.failed]
    headings, lines = cells(rows)
    own = {row.workload: row.figures for row in rows if row.engine == ENGINE}
    headings = [*headings, "host, ms a step", "sequences a step"]
    table = [_line(headings), _line(["---", "---", *["---:"] * (len(headings) - 2)])]
    for line in lines:
        figures = own.get(line[0], {})
        host = f"{figures['host_ms_per_step']:.2f}" if "host_ms_per_step" in figures else ""
        sequences = f"{figures['sequences_per_step']:.1f}" if "sequences_per_step" in figures else ""
        table.append(_line([*line, host, sequences]))
    failed = [f"- {TITLES[row.engine]}, {row.workload}: {row.failed}" for row in rows if row.failed]
    queue = ", through Redis" if results.what.endswith("through-redis") else ""
    parts = [f"## {results.model}, {results.device}, {results.date[:10]}{queue}", _setting(results), "\n".join(table)]
    others = [_seconds(row) for row in every if not row.has_rate and not row.failed]
    return "\n\n".join([*parts, *(["\n".join([*others, *failed])] if others or failed else [])]) + "\n"


def _seconds(row: Row) -> str:
    figures = "".join(f", {name} {value:g}" for name, value in row.figures.items())
    return f"- {TITLES[row.engine]}, {row.workload}: {row.seconds:.3f} s{figures}"


def _setting(results: Results) -> str:
    words = [f"{name} {value}" for name, value in results.environment.items() if name != "device"]
    words += [
        f"{TITLES[engine]}: " + ", ".join(f"{name} {value}" for name, value in about.items())
        for engine, about in results.engines.items()
        if engine != ENGINE
    ]
    settings = ", ".join(
        f"`{name}` {value}" for name, value in results.settings.items() if value is not None and name != "model"
    )
    return f"{'; '.join(words)}.\nSettings: {settings}."


def _ordered(rows: Sequence[Row]) -> list[Row]:
    """Millrace's first, each engine's and each workload's in the order in which they ran."""
    engines = list(dict.fromkeys(row.engine for row in rows))
    return sorted(rows, key=lambda row: (not row.engine.startswith(ENGINE), engines.index(row.engine)))


def _line(values: Sequence[str]) -> str:
    return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"
