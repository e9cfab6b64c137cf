"""Prometheus' text format, version 0.0.4: what /metrics of a worker and of a gateway are written in."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, object]


class Histogram:
    """Observations counted in buckets. `bounds` are the buckets' upper ends, rising; all above falls into one more."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]):
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name with the unit (counters end in _total), what it says, and its value for each label set."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: Sequence[tuple[Labels, float | Histogram]] = field(default_factory=tuple)

    def lines(self, common: Labels) -> Iterator[str]:
        yield f"# HELP {self.name} {_escaped(self.help)}"
        yield f"# TYPE {self.name} {self.kind}"
        for labels, value in self.samples:
            pairs = [f'{name}="{_escaped(str(of), quotes=True)}"' for name, of in {**common, **labels}.items()]
            if isinstance(value, Histogram):
                yield from self._histogram(pairs, value)
            else:
                yield f"{self.name}{_braced(pairs)} {_number(value)}"

    def _histogram(self, pairs: list[str], histogram: Histogram) -> Iterator[str]:
        below = 0
        for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
            below += count
            bucket = [*pairs, f'le="{_number(bound)}"']
            yield f"{self.name}_bucket{_braced(bucket)} {below}"
        yield f"{self.name}_sum{_braced(pairs)} {_number(histogram.total)}"
        yield f"{self.name}_count{_braced(pairs)} {below}"


def one(name: str, kind: Literal["counter", "gauge", "histogram"], help: str, value: float | Histogram) -> Family:
    """A metric without labels of its own."""
    return Family(name, kind, help, [({}, value)])


def render(families: Iterable[Family], common: Labels | None = None) -> str:
    """The page; every sample bears the `common` labels."""
    labels = common or {}
    return "".join(line + "\n" for family in families for line in family.lines(labels))


def _braced(pairs: Sequence[str]) -> str:
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _escaped(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if float(value).is_integer() else repr(float(value))
