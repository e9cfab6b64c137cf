"""Rates of counts that move in steps, and what is left at them."""

from __future__ import annotations

from itertools import accumulate

import pytest

from millrace.bulk.pace import WINDOW, Pace


def seen(pace: Pace, *samples: tuple[float, float]) -> Pace:
    for at, count in samples:
        pace.add(at, count)
    return pace


def test_nothing_is_known_before_anything_moved() -> None:
    assert Pace().rate is None
    assert seen(Pace(), (10.0, 0)).rate is None
    assert seen(Pace(10.0), (10.0, 0), (11.0, 0)).rate is None
    assert seen(Pace(), (10.0, 500)).left(1000) is None


def test_one_look_has_the_mean_since_the_begin() -> None:
    pace = seen(Pace(began=100.0), (150.0, 500))
    assert (pace.rate, pace.left(1500)) == (10.0, 100.0)
    # One step may be of any length.
    assert seen(pace, (160.0, 620)).rate == pytest.approx(620 / 60)


def test_steps_count_and_not_the_looks_between() -> None:
    # 100 lines every 10 s, looked at every second from another second on.
    pace = Pace(began=0.0)
    for at in range(1003, 1050):
        pace.add(at, at // 10 * 100)
        if at >= 1020:
            assert pace.rate == pytest.approx(10.0)
    assert pace.left(at // 10 * 100 + 50) == pytest.approx(5.0)


def test_irregular_steps_of_many_processes() -> None:
    gaps = [0.4, 1.1, 0.2, 2.0, 0.7] * 20
    pace = seen(Pace(), *((at, at * 30) for at in accumulate(gaps)))
    assert pace.rate == pytest.approx(30.0)


def test_the_last_minute_counts() -> None:
    pace = Pace(began=0.0)
    for at in range(0, 200, 5):
        pace.add(at, at * 100)
    for at in range(200, 200 + int(WINDOW) + 10, 5):
        pace.add(at, 20_000 + (at - 200) * 2)
    assert pace.rate == pytest.approx(2.0)


def test_rare_steps_are_kept_beyond_the_window() -> None:
    pace = Pace(began=0.0)
    for at in range(0, 1000, 10):
        pace.add(at, at // 300 * 5)
    assert pace.rate == pytest.approx(5 / 300)


def test_it_slows_down_before_it_stands_still() -> None:
    pace = seen(Pace(), (0, 0), (10, 100), (20, 200))
    assert (pace.rate, seen(pace, (30, 200)).rate) == (10.0, 10.0)
    rates = [seen(pace, (at, 200)).rate for at in (35, 40, 60, 79)]
    assert rates == sorted(rates, reverse=True)
    assert rates[1] == pytest.approx(5.0)
    assert seen(pace, (81, 200)).rate == 0.0
    assert pace.left(300) is None
    # A look that never saw it move says so, too.
    assert seen(Pace(began=0.0), (100, 50), (161, 50)).rate == 0.0


def test_it_moves_again_after_a_halt() -> None:
    pace = seen(Pace(), (0, 0), (10, 100), (500, 100), (510, 200), (520, 300))
    assert pace.rate == pytest.approx(10.0)


def test_samples_out_of_order_and_a_count_that_begins_anew() -> None:
    pace = seen(Pace(), (0, 0), (10, 100), (5, 7), (10, 300), (20, 200))
    assert pace.rate == 10.0
    assert seen(pace, (30, 5)).rate is None
    assert seen(pace, (40, 25), (50, 45)).rate == 2.0


def test_nothing_is_left_at_the_end() -> None:
    assert seen(Pace(), (0, 0), (10, 100), (20, 200)).left(200) is None
