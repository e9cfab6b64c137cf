"""Arrivals of `millrace bench latency`: the same from the same seed, and as far apart as their rate says."""

from __future__ import annotations

import math
from statistics import mean, pstdev

import pytest

from millrace_bench.arrivals import arrivals, due_times, parse_rates
from millrace_bench.workloads import Job

JOBS = [Job([100 + number], 1) for number in range(7)]


def gaps(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)]


def test_the_same_seed_makes_the_same_arrivals_and_another_one_others() -> None:
    def made(seed: int) -> list[tuple[float, list[int]]]:
        return [(a.due, a.job.prompt) for a in arrivals(JOBS, due_times(3.0, seed, requests=20), seed, 500)]

    assert made(1) == made(1)
    assert made(1) != made(2)
    assert {made(seed)[0][1][0] for seed in range(40)} == {job.prompt[0] for job in JOBS}


def test_gaps_are_exponential_with_the_mean_of_the_rate() -> None:
    found = gaps(due_times(4.0, 3, requests=20_000))
    assert mean(found) == pytest.approx(0.25, rel=0.03)
    assert pstdev(found) == pytest.approx(0.25, rel=0.03)
    for share in (0.1, 0.5, 0.9):
        longest = -0.25 * math.log(1 - share)
        assert sum(gap <= longest for gap in found) / len(found) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("burstiness", [0.25, 4.0])
def test_burstiness_changes_how_even_they_are_and_not_the_mean(burstiness: float) -> None:
    found = gaps(due_times(4.0, 3, requests=20_000, burstiness=burstiness))
    assert mean(found) == pytest.approx(0.25, rel=0.05)
    assert pstdev(found) == pytest.approx(0.25 / math.sqrt(burstiness), rel=0.05)


def test_another_rate_is_the_same_pattern_stretched() -> None:
    slow, quick = due_times(1.0, 5, requests=50), due_times(10.0, 5, requests=50)
    assert slow == pytest.approx([10 * time for time in quick])


def test_so_many_seconds_of_them() -> None:
    times = due_times(50.0, 1, seconds=20.0)
    assert times == sorted(times)
    assert 19 < times[-1] <= 20
    assert times == due_times(50.0, 1, requests=len(times))


def test_at_a_rate_of_inf_all_come_at_once() -> None:
    assert due_times(math.inf, 1, requests=3) == [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="give --requests"):
        due_times(math.inf, 1, seconds=3.0)


def test_jobs_come_in_their_order_and_round_again() -> None:
    jobs = [Job([100 + number], 1 + number) for number in range(7)]
    first, *rest = (a.job.max_tokens - 1 for a in arrivals(jobs, [0.0] * 16, 4, 500))
    assert rest == [(first + number) % 7 for number in range(1, 16)]


def beginnings(jobs: list[Job], passes: int, run: int = 0) -> list[tuple[int, ...]]:
    coming = arrivals(jobs, [0.0] * (passes * len(jobs)), 4, 500, run)
    return [tuple(a.job.prompt[:16]) for a in coming]


def test_another_pass_and_another_run_share_nothing_but_what_the_jobs_share_themselves() -> None:
    # Each job is the next one with its first id moved by one, and with all ids moved by one; two have one beginning.
    jobs = [Job([100 + n, *[7] * 30], 1) for n in range(5)] + [Job([n] * 40, 1) for n in range(5)]
    jobs += [Job([*range(20), n], 1) for n in (8, 9)]
    assert len(set(beginnings(jobs, 1))) == len(jobs) - 1
    assert sorted(beginnings(jobs, 1)) == sorted(tuple(job.prompt[:16]) for job in jobs)
    found = {begin for run in (0, 1, 2) for begin in beginnings(jobs, 4, run)}
    assert len(found) == 3 * 4 * (len(jobs) - 1)
    assert all(0 <= token < 500 for begin in found for token in begin)
    assert [len(a.job.prompt) for a in arrivals([Job([5] * 40, 1)], [0.0] * 2, 4, 500)] == [40, 40]


def test_rates_are_numbers_or_inf() -> None:
    assert parse_rates("1,2.5,inf") == [1.0, 2.5, math.inf]
    for text in ("", "1,x", "0", "-1", "nan"):
        with pytest.raises(ValueError, match="--rates"):
            parse_rates(text)
