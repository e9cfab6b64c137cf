"""Horizontal bars as SVG, readable on light and on dark pages."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH = 760
#: Where bars begin, and the longest one.
_LEFT, _LONGEST = 120, 480
_BAR, _GAP, _GROUP_GAP = 15, 3, 12
_TITLE, _LEGEND = 34, 26

#: Of the bars, in the order of the legend: the first is the darkest on a light page, and
#: the brightest on a dark one.
_LIGHT = ("#0f5c8c", "#4f9dcc", "#d9822b", "#9aa4ad", "#6a8f3c")
_DARK = ("#6cc0f2", "#2f7fb0", "#e59a4b", "#6b7780", "#94bf5f")

_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 15px; font-weight: 600 }
.small { font-size: 11px; fill: #59636e }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.small { fill: #9198a1 }
%s
}
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """`series` gives the colour, `words` stand behind it."""

    series: str
    value: float
    words: str


@dataclass(frozen=True, slots=True)
class Panel:
    """Groups of bars under one title. Each group's longest bar is as long as any other's."""

    title: str
    groups: Sequence[tuple[str, Sequence[Bar]]]


def draw(panels: Sequence[Panel], series: Sequence[str]) -> str:
    """The picture. `series` are all that there may be, in the order of their colours; unused ones have no legend."""
    used = {bar.series for panel in panels for _, bars in panel.groups for bar in bars}
    parts, y = _legend(series, used), float(_LEGEND)
    for panel in panels:
        y += _TITLE
        parts.append(_text(0, y - 12, panel.title, "title"))
        for name, bars in panel.groups:
            most = max((bar.value for bar in bars), default=0) or 1
            height = len(bars) * (_BAR + _GAP)
            parts.append(_text(_LEFT - 10, y + height / 2 + 3, name, anchor="end"))
            for bar in bars:
                length = max(1.0, bar.value / most * _LONGEST)
                color = series.index(bar.series) % len(_LIGHT)
                parts.append(
                    f'<rect class="s{color}" x="{_LEFT}" y="{y:g}" width="{length:.1f}" height="{_BAR}" rx="2">'
                    f"<title>{escape(f'{name}, {bar.series}: {bar.words}')}</title></rect>"
                )
                parts.append(_text(_LEFT + length + 6, y + 11.5, bar.words, "small"))
                y += _BAR + _GAP
            y += _GROUP_GAP
    return _document(parts, y)


def _legend(series: Sequence[str], used: Container[str]) -> list[str]:
    parts, x = [], 0.0
    for number, name in enumerate(series):
        if name not in used:
            continue
        parts.append(f'<rect class="s{number % len(_LIGHT)}" x="{x:g}" y="4" width="12" height="12" rx="2"/>')
        parts.append(_text(x + 18, 14.5, name))
        # A letter is about 7 wide.
        x += 18 + 7.0 * len(name) + 22
    return parts


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _document(parts: Sequence[str], height: float) -> str:
    fills = "\n".join(f".s{n} {{ fill: {color} }}" for n, color in enumerate(_LIGHT))
    dark = "\n".join(f".s{n} {{ fill: {color} }}" for n, color in enumerate(_DARK))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:g}" width="{_WIDTH}" role="img">'
    return "\n".join([head, f"<style>\n{fills}{_STYLE % dark}</style>", *parts, "</svg>", ""])
