"""Percentiles, goodput and the verdict of `millrace bench latency`, from times that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from millrace_bench.arrivals import Arrival
from millrace_bench.latency_figures import complaint, figures
from millrace_bench.latency_table import show
from millrace_bench.percentiles import in_ms, percentile
from millrace_bench.timeline import Timeline, is_good, parse_limits
from millrace_bench.workloads import Job


def timeline(due: float, *times: float) -> Timeline:
    """A request of which a token came at each of these times."""
    found = Timeline(Arrival(due, Job([5, 6], len(times))), sent=due)
    for time in times:
        found.add(time, 1)
    return found


def test_percentiles_of_a_known_list() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.95, 0.99, 1.0)] == pytest.approx(
        [1.0, 50.5, 95.05, 99.01, 100.0]
    )
    assert percentile([7.0], 0.99) == 7.0
    draw = np.random.default_rng(3).lognormal(size=357)
    for share in (0.5, 0.95, 0.99):
        assert percentile(sorted(draw.tolist()), share) == pytest.approx(np.percentile(draw, share * 100))


def test_milliseconds_of_unordered_seconds_and_of_none() -> None:
    assert in_ms("x", [0.003, 0.001, 0.002]) == {"x_p50_ms": 2.0, "x_p95_ms": 2.9, "x_p99_ms": 2.98}
    assert in_ms("x", []) == {"x_p50_ms": None, "x_p95_ms": None, "x_p99_ms": None}


def test_waits_count_from_when_a_request_was_due_and_every_gap_is_one() -> None:
    row = figures([timeline(1.0, 1.2, 1.3, 1.4, 2.4), timeline(2.0, 2.5)], 1.0, {})
    assert (row["ttft_p50_ms"], row["e2e_p50_ms"]) == (350.0, 950.0)
    # 0.1, 0.1 and 1.0: the mean of a request would hide the last one.
    assert (row["itl_p50_ms"], row["itl_p99_ms"], row["itl_p99_over_p50"]) == (100.0, 982.0, 9.82)
    assert row["tpot_p50_ms"] == 400.0
    assert (row["seconds"], row["served_req_s"], row["output_tok_s"]) == (2.5, 0.8, 2.0)
    assert row["goodput_req_s"] is None


def test_a_piece_of_several_tokens_is_one_gap_and_counts_them() -> None:
    found = Timeline(Arrival(0.0, Job([1], 5)))
    found.add(1.0, 1)
    found.add(3.0, 4)
    assert (found.gaps, found.tpot) == ([2.0], 0.5)
    found.check(0)
    found.add(4.0, 1)
    with pytest.raises(RuntimeError, match="request 3 had 6 tokens, not 5"):
        found.check(3)


@pytest.mark.parametrize(
    ("limits", "good"),
    [("ttft:187.5", True), ("ttft:187", False), ("tpot:355", True), ("itl:874", False), ("itl:875", True),
     ("e2el:1250,ttft:200", True), ("e2el:1249,ttft:200", False)],
)  # fmt: skip
def test_a_good_request_keeps_all_limits(limits: str, good: bool) -> None:
    # Sixteenths, which binary numbers have exactly: 187.5 ms, then gaps of 62.5, 125 and 875.
    assert is_good(timeline(1.0, 1.1875, 1.25, 1.375, 2.25), parse_limits(limits)) is good


def test_goodput_is_good_requests_a_second() -> None:
    found = [timeline(0.0, 0.5, 1.0), timeline(1.0, 3.5, 4.0)]
    assert figures(found, 1.0, parse_limits("ttft:500"))["goodput_req_s"] == 0.25


def test_limits_that_are_none_are_named() -> None:
    assert parse_limits(None) == {}
    for text in ("", "ttft", "ttft:x", "ttft:0", "speed:3", "ttft:5;itl:3", "itl:nan"):
        with pytest.raises(ValueError, match="--goodput"):
            parse_limits(text)


def test_an_engine_that_falls_behind_is_said_to(capsys: pytest.CaptureFixture[str]) -> None:
    # One a second comes; one in two seconds ends, or all do two seconds later.
    behind = figures([timeline(float(n), 2.0 * n + 2) for n in range(400)], 1.0, {}, 512)
    fine = figures([timeline(float(n), n + 2.0) for n in range(400)], 1.0, {})
    assert (behind["kept_up"], fine["kept_up"]) == (False, True)
    assert (behind["in_flight_half"], behind["in_flight_end"]) == (101, 201)
    words = complaint(behind)
    assert words is not None
    assert "rate 1, long prefill 512: the engine could not keep up, 0.5 requests a second" in words
    assert complaint(fine) is None
    show("a title", [behind, fine], {"python": "3"})
    printed = capsys.readouterr().out
    assert "NO" in printed
    assert printed.count("could not keep up") == 1


def test_a_run_that_is_too_short_to_tell_says_so() -> None:
    words = complaint(figures([timeline(n / 1000, 5.0) for n in range(50)], 1000.0, {}))
    assert words is not None
    assert "too few answers' lengths to be sure" in words


def test_all_at_once_is_no_rate_to_keep_up_with() -> None:
    row = figures([timeline(0.0, 1.0)] * 3, math.inf, {})
    assert (row["rate"], row["kept_up"], complaint(row)) == ("inf", None, None)
