"""The four plots of a queue: jobs waiting, tokens a second, and the latencies of its jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from millrace import QueueStats
from millrace.overview_rows import age
from millrace_schemas import Lane

from .history import WINDOW, Point, Spread, spread_of
from .plots import Legend, Line, Plot, decades, draw, linear

_MINUTES = f"{WINDOW / 60:.0f} minutes"
_NO_LOOK = "Nothing was measured yet; the gateway looks every few seconds."


def plots_of(queue: QueueStats, points: Sequence[Point]) -> str:
    """The last minutes of a queue, up to now, as figures."""
    plots = (
        _waiting(queue, points),
        _throughput(points),
        _latency(
            "Time to first token",
            {lane: [point.first_token.get(lane) for point in points] for lane in queue.lanes},
            {lane: spread_of(p.ended[lane].first_token for p in points if lane in p.ended) for lane in queue.lanes},
            points,
        ),
        _latency(
            "Time to whole answer",
            {lane: [point.total.get(lane) for point in points] for lane in queue.lanes},
            {lane: spread_of(p.ended[lane].total for p in points if lane in p.ended) for lane in queue.lanes},
            points,
        ),
    )
    return "".join(draw(plot, queue.at - WINDOW, queue.at) for plot in plots)


def _waiting(queue: QueueStats, points: Sequence[Point]) -> Plot:
    legend = [
        Legend(lane, f"{lane}: {numbers.waiting:,}" + _oldest(numbers.oldest_waiting))
        for lane, numbers in queue.lanes.items()
    ]
    lines = [Line(lane, [(point.at, point.waiting.get(lane)) for point in points]) for lane in queue.lanes]
    return Plot("Queue depth", "jobs waiting", legend, lines, linear, _NO_LOOK)


def _oldest(seconds: float | None) -> str:
    return "" if seconds is None else f", oldest {age(seconds)}"


def _throughput(points: Sequence[Point]) -> Plot:
    samples = [(point.at, point.tokens) for point in points]
    known = [value for _, value in samples if value is not None]
    text = f"now {known[-1]:,.0f}, at most {max(known):,.0f}" if known else "-"
    empty = "Waiting for two heartbeats of a worker." if points else _NO_LOOK
    return Plot("Throughput", "output tokens per second", [Legend("all", text)], [Line("all", samples)], linear, empty)


def _latency(
    title: str,
    spreads: Mapping[Lane, Sequence[Spread | None]],
    overall: Mapping[Lane, Spread],
    points: Sequence[Point],
) -> Plot:
    times = [point.at for point in points]
    lines = []
    for lane, found in spreads.items():
        most = [spread.most if spread else None for spread in found]
        half = [spread.half if spread else None for spread in found]
        lines += [Line(f"{lane} most", list(zip(times, most, strict=True)))]
        lines += [Line(lane, list(zip(times, half, strict=True)))]
    legend = [
        Legend(lane, f"{lane}: p50 {duration(spread.half)}, p95 {duration(spread.most)}")
        for lane, spread in overall.items()
        if spread.half is not None and spread.most is not None
    ]
    unit = "since submit; p50 solid, p95 dashed"
    return Plot(title, unit, legend, lines, decades, f"No job was completed in the last {_MINUTES}.")


def duration(seconds: float) -> str:
    """With two digits that say something."""
    if seconds < 0.995:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else age(seconds)
