"""Requests that come on their own, whatever becomes of those before them: when each is due, from a seed."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from .passes import again
from .workloads import Job


@dataclass(frozen=True, slots=True)
class Arrival:
    """`due` is in seconds after the start."""

    due: float
    job: Job


def parse_rates(text: str) -> list[float]:
    """Requests a second, from "1,4,16,inf"; inf is all at once. Raises ValueError."""
    try:
        rates = [float(rate) for rate in text.split(",")]
    except ValueError as e:
        raise ValueError(f"--rates is {text!r}; it takes numbers or inf, with commas between them") from e
    if not all(rate > 0 for rate in rates):
        raise ValueError(f"--rates is {text!r}; every rate must be positive")
    return rates


def due_times(
    rate: float, seed: int, *, requests: int | None = None, seconds: float | None = None, burstiness: float = 1.0
) -> list[float]:
    """When requests are due, in seconds: so many, or as many as come within `seconds`. Give one of the two.

    The gaps between them are gamma-distributed with a mean of 1 / rate. A `burstiness` of 1 makes that a Poisson
    process; lower is burstier, higher more even. Another rate with the same seed is the same pattern, stretched.
    Raises ValueError for `seconds` of an infinite rate.
    """
    if math.isinf(rate):
        if requests is None:
            raise ValueError("at a rate of inf all requests come at once: give --requests instead of --seconds")
        return [0.0] * requests
    draw = random.Random(seed)
    times: list[float] = []
    now = 0.0
    while requests is None or len(times) < requests:
        now += draw.gammavariate(burstiness, 1 / burstiness) / rate
        if seconds is not None and now > seconds:
            break
        times.append(now)
    return times


def arrivals(jobs: list[Job], times: list[float], seed: int, vocab_size: int, run: int = 0) -> list[Arrival]:
    """`jobs` in their order from a place that the seed draws, and round again when there are more times than jobs.

    Each pass over all jobs has other token ids than those before it, of this run and of others.
    """
    first = random.Random(seed).randrange(len(jobs))
    coming: list[Arrival] = []
    for begin in range(0, len(times), len(jobs)):
        passed = again(jobs, run, begin // len(jobs), vocab_size)
        for number, due in enumerate(times[begin : begin + len(jobs)], first):
            coming.append(Arrival(due, passed[number % len(jobs)]))
    return coming
