"""Plots as HTML: lines in an SVG that stretches with the page, and around it the axes as text that does not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

#: What an SVG counts in; its size on the page is that of the page.
_WIDTH, _HEIGHT = 600, 100
_MOST_LABELS = 4

#: A value and its time, Unix seconds; None: there was nothing to measure.
Sample = tuple[float, float | None]


@dataclass(frozen=True, slots=True)
class Line:
    #: Of the style sheet.
    css: str
    samples: Sequence[Sample]


@dataclass(frozen=True, slots=True)
class Legend:
    """What stands for lines of one colour, and their figures in words."""

    css: str
    text: str


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to heights between 0 and 1, and labels at equal distances, the highest first."""

    height: Callable[[float], float]
    labels: Sequence[str]


@dataclass(frozen=True, slots=True)
class Plot:
    title: str
    #: Under the title: what is measured.
    unit: str
    legend: Sequence[Legend]
    lines: Sequence[Line]
    #: Makes the scale of the values that there are; they are at least one.
    scale: Callable[[Sequence[float]], Scale]
    #: Stands in the place of the lines when there are no values.
    empty: str


def linear(values: Sequence[float]) -> Scale:
    """From 0 to a round number that is not below any value."""
    most = max(*values, 2.0)
    size = 10.0 ** math.floor(math.log10(most))
    top = next(size * step for step in (1, 2, 4, 6, 8, 10) if size * step >= most)
    return Scale(lambda value: value / top, [f"{top:,.0f}", f"{top / 2:,.0f}", "0"])


def decades(values: Sequence[float]) -> Scale:
    """Powers of ten, of seconds."""
    low = math.floor(math.log10(min(values)))
    span = max(1, math.ceil(math.log10(max(values))) - low)
    step = math.ceil(span / _MOST_LABELS)
    count = math.ceil(span / step)
    labels = [power_of_ten(low + step * n) for n in range(count, -1, -1)]
    return Scale(lambda value: (math.log10(value) - low) / (step * count), labels)


def power_of_ten(exponent: int) -> str:
    """So many seconds."""
    return f"{10**exponent:,} s" if exponent >= 0 else f"{10 ** (exponent + 3):,g} ms"


def draw(plot: Plot, start: float, end: float) -> str:
    """A figure of the time from `start` to `end`. All text is escaped here."""
    legend = "".join(
        f'<span class="key"><svg viewBox="0 0 12 4" class="{key.css}" aria-hidden="true"><path d="M0 2h12"/></svg>'
        f"{escape(key.text)}</span>"
        for key in plot.legend
    )
    head = f"<strong>{escape(plot.title)}</strong><small>{escape(plot.unit)}</small>{legend}"
    return f"<figure><figcaption>{head}</figcaption>{_body(plot, start, end)}</figure>"


def _body(plot: Plot, start: float, end: float) -> str:
    values = [value for line in plot.lines for _, value in line.samples if value is not None]
    if not values:
        return f'<p class="none">{escape(plot.empty)}</p>'
    scale = plot.scale(values)
    steps = len(scale.labels) - 1
    grid = "".join(f"M0 {_HEIGHT * n / steps:g}h{_WIDTH}" for n in range(steps + 1))
    paths = "".join(f'<path class="{line.css}" d="{_path(line.samples, scale, start, end)}"/>' for line in plot.lines)
    label = escape(f"{plot.title}, {plot.unit}: " + "; ".join(key.text for key in plot.legend))
    labels = "".join(f"<span>{escape(text)}</span>" for text in scale.labels)
    minutes = (end - start) / 60
    times = f"<span>{minutes:.0f} min ago</span><span>{minutes / 2:.0f} min ago</span><span>now</span>"
    return (
        f'<div class="plot"><div class="y" aria-hidden="true">{labels}</div>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'<path class="grid" d="{grid}"/>{paths}</svg><div class="x" aria-hidden="true">{times}</div></div>'
    )


def _path(samples: Sequence[Sample], scale: Scale, start: float, end: float) -> str:
    """Moves and lines; a gap in the values, or in the times, is a gap in the line."""
    gap = _usual_pause(samples) * 3
    path: list[str] = []
    run: list[tuple[int, float]] = []
    last = -math.inf
    for at, value in samples:
        if value is None or at - last > gap:
            path += _run(run)
            run = []
        if value is not None:
            x = round(_WIDTH * (at - start) / (end - start))
            y = round(_HEIGHT * (1 - scale.height(value)), 1)
            if len(run) > 1 and run[-2][1] == run[-1][1] == y:
                # A level stretch needs its ends only.
                run.pop()
            run.append((x, y))
        last = at
    return "".join(path + _run(run))


def _usual_pause(samples: Sequence[Sample]) -> float:
    pauses = sorted(after[0] - before[0] for before, after in itertools.pairwise(samples))
    return pauses[len(pauses) // 2] if pauses else math.inf


def _run(points: Sequence[tuple[int, float]]) -> list[str]:
    if not points:
        return []
    (x, y), *rest = points
    # Round ends make a dot of a line without length.
    return [f"M{x} {y:g}", *(f"L{x} {y:g}" for x, y in rest)] if rest else [f"M{x} {y:g}h0"]
