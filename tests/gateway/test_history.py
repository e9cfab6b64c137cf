"""What the gateway remembers for the plots: rates and latencies between two looks, gaps, and an end of memory."""

from __future__ import annotations

import re

import pytest

from millrace import Lane, LaneStats, QueueStats, WorkerInfo
from millrace.gateway.history import SPREAD, WINDOW, History, Spread
from millrace.gateway.plots import Line, Plot, decades, draw, linear
from millrace.gateway.queue_plots import duration, plots_of
from millrace.overview import Overview
from millrace_schemas import Latencies, bucket_of

QUICK, SLOW = bucket_of(0.1), bucket_of(30.0)


def worker(at: float, name: str = "w", tokens: int = 0, total: dict[int, int] | None = None) -> WorkerInfo:
    counted = Latencies(first_token={QUICK: sum((total or {}).values())}, total=total or {})
    return WorkerInfo(
        name=name, model="demo", host="h", pid=1, device="cpu", beat_at=at, output_tokens=tokens,
        # Corrected to the clock of Redis, so that it is never quite the same.
        started_at=1.0 + at / 1e6,
        latencies={Lane.BATCH: counted},
    )  # fmt: skip


def queue(at: float, *workers: WorkerInfo, waiting: int = 0, model: str = "demo") -> QueueStats:
    lanes = {lane: LaneStats(waiting=waiting, in_flight=0) for lane in Lane}
    return QueueStats(model=model, at=at, lanes=lanes, delayed=0, dead=0, workers=list(workers))


def look(history: History, *queues: QueueStats) -> None:
    history.record(Overview(models=[], queues=list(queues), failures=[]))


def test_rates_and_latencies_are_those_between_two_looks() -> None:
    history = History()
    # What a worker did before it was first seen belongs to no time.
    look(history, queue(100.0, worker(100.0, tokens=1000, total={SLOW: 50})))
    look(history, queue(105.0, worker(105.0, tokens=1500, total={SLOW: 50, QUICK: 3}), worker(104.0, "new", 7)))
    first, second = history.of("demo")
    assert (first.tokens, first.total[Lane.BATCH]) == (None, Spread(None, None))
    assert second.tokens == 100.0
    assert second.ended[Lane.BATCH].total == {QUICK: 3}
    half = second.total[Lane.BATCH].half
    assert half == pytest.approx(0.1, rel=0.19)
    assert second.total[Lane.INTERACTIVE] == Spread(None, None)
    # Percentiles are of a while, so that a look in which nothing ended shows no hole.
    look(history, queue(105.0 + SPREAD / 2, worker(105.0 + SPREAD / 2, tokens=1500, total={SLOW: 50, QUICK: 3})))
    look(history, queue(106.0 + SPREAD, worker(106.0 + SPREAD, tokens=1500, total={SLOW: 50, QUICK: 3})))
    assert [point.total[Lane.BATCH].half for point in history.of("demo")] == [None, half, half, None]


def test_what_is_old_or_gone_is_forgotten() -> None:
    history = History()
    look(history, queue(100.0, model="gone"), queue(100.0))
    look(history, queue(100.0 + WINDOW))
    assert (len(history.of("gone")), len(history.of("demo"))) == (1, 2)
    look(history, queue(101.0 + WINDOW))
    assert history.of("gone") == ()
    assert [point.at for point in history.of("demo")] == [100.0 + WINDOW, 101.0 + WINDOW]


def paths(html: str) -> list[str]:
    return re.findall(r'<path class="x" d="([^"]*)"', html)


def test_lines_break_where_nothing_was_measured() -> None:
    samples = [(0.0, 0.0), (5.0, 4.0), (10.0, None), (15.0, 2.0), (60.0, 1.0), (65.0, 1.0), (70.0, 1.0), (75.0, 1.0)]
    html = draw(Plot("t", "u", [], [Line("x", samples)], linear, "none"), 0.0, 100.0)
    # A dot for the one between two gaps; of a level stretch only its ends.
    assert paths(html) == ["M0 100L30 0M90 50h0M360 75L450 75"]
    assert re.findall(r"<span>([^<]*)</span>", html)[:3] == ["4", "2", "0"]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.0], ["2", "1", "0"]), ([3.0], ["4", "2", "0"]), ([4.1, 1.0], ["6", "3", "0"]), ([90.0], ["100", "50", "0"]),
        ([1201.0], ["2,000", "1,000", "0"]),
    ],
)  # fmt: skip
def test_linear_axes_end_at_round_numbers(values: list[float], labels: list[str]) -> None:
    assert linear(values).labels == labels


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.05], ["100 ms", "10 ms"]), ([0.02, 3.0], ["10 s", "1 s", "100 ms", "10 ms"]),
        ([1.0, 1.0], ["10 s", "1 s"]), ([0.002, 20_000.0], ["100,000 s", "1,000 s", "10 s", "100 ms", "1 ms"]),
    ],
)  # fmt: skip
def test_latency_axes_are_powers_of_ten(values: list[float], labels: list[str]) -> None:
    scale = decades(values)
    assert scale.labels == labels
    assert all(0 <= scale.height(value) <= 1 for value in values)


def test_plots_say_what_they_lack() -> None:
    assert plots_of(queue(100.0), ()).count("Nothing was measured yet") == 2
    history = History()
    look(history, queue(100.0, worker(100.0)))
    html = plots_of(queue(100.0, worker(100.0)), history.of("demo"))
    assert "Waiting for two heartbeats" in html
    assert html.count("No job was completed in the last 10 minutes.") == 2


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.0414, "41 ms"), (0.999, "1.0 s"), (12.34, "12.3 s"), (90, "1.5 min")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
