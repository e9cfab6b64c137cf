from __future__ import annotations

from millrace_worker.engine.filling import LEAST_COST
from millrace_worker.engine.pace import Pace


def settled(most: int, fixed: float, each: float) -> int:
    """The allowance where a step takes `fixed` seconds and `each` for its cost, and is as full as it may be."""
    pace = Pace(most)
    pace.observe(LEAST_COST // 2, fixed + LEAST_COST // 2 * each)
    for _ in range(60):
        pace.observe(pace.allowance, fixed + pace.allowance * each)
    return pace.allowance


def test_begins_with_a_share_of_the_budget() -> None:
    assert Pace(8192).allowance == 512
    assert Pace(16).allowance == LEAST_COST


def test_a_step_comes_to_take_ten_milliseconds() -> None:
    # Of which two are there for a step of any cost.
    assert 78 <= settled(8192, 0.002, 0.0001) <= 80


def test_a_slow_device_has_twice_its_quickest_step() -> None:
    # 40 ms and 2 ms for the quick one's own cost, so 44 ms more.
    assert 174 <= settled(8192, 0.040, 0.00025) <= 178


def test_what_costs_nothing_is_not_bounded_and_what_costs_too_much_is_not_stopped() -> None:
    assert settled(8192, 0.004, 0.0000005) == 8192
    assert settled(8192, 0.001, 1.0) == LEAST_COST


def test_one_disturbed_step_changes_little() -> None:
    pace = Pace(8192)
    pace.observe(9, 0.005)
    pace.observe(400, 60.0)
    assert pace.allowance == 256
    pace.observe(400, 0.000001)
    assert pace.allowance == 320
    pace.observe(100, 60.0)
    pace.observe(400, 0.0)
    assert pace.allowance == 320, "too small to tell, and no time at all"
