"""The figures of `millrace bench latency`, from when the tokens of each request came out."""

from __future__ import annotations

import math
from typing import Any

from .percentiles import in_ms, percentile
from .timeline import Timeline, is_good

#: Requests in flight may grow by this share of those that come meanwhile, and by so many standard deviations of a
#: Poisson number, before an engine counts as too slow.
_GROWTH, _DEVIATIONS = 0.1, 3.0


def figures(timelines: list[Timeline], rate: float, limits: dict[str, float], threshold: int = 0) -> dict[str, Any]:
    """One row: milliseconds, requests and tokens a second, and whether the engine kept up with the arrivals.

    `kept_up` is None where nothing arrives while others are answered: at a rate of inf.
    """
    seconds = max(timeline.ended for timeline in timelines)
    itl = in_ms("itl", (gap for timeline in timelines for gap in timeline.gaps))
    row: dict[str, Any] = {
        "long_prefill_token_threshold": threshold,
        "rate": "inf" if math.isinf(rate) else rate,
        "requests": len(timelines),
        "seconds": round(seconds, 3),
        "served_req_s": round(len(timelines) / seconds, 3),
        "prompt_tokens": sum(len(timeline.arrival.job.prompt) for timeline in timelines),
        "cached_tokens": sum(timeline.cached for timeline in timelines),
        "output_tokens": sum(timeline.tokens for timeline in timelines),
        **in_ms("ttft", (timeline.ttft for timeline in timelines)),
        **itl,
        "itl_p99_over_p50": _ratio(itl["itl_p99_ms"], itl["itl_p50_ms"]),
        **in_ms("tpot", (timeline.tpot for timeline in timelines if timeline.tokens > 1)),
        **in_ms("e2e", (timeline.e2e for timeline in timelines)),
        **_backlog(timelines, rate),
    }
    row["output_tok_s"] = round(row["output_tokens"] / seconds, 1)
    late = sorted(timeline.sent - timeline.arrival.due for timeline in timelines)
    row["sent_late_p99_ms"] = round(percentile(late, 0.99) * 1000, 3)
    row["goodput_req_s"] = None
    if limits:
        row["goodput_req_s"] = round(sum(is_good(timeline, limits) for timeline in timelines) / seconds, 3)
    return row


def run_name(rate: float, threshold: int) -> str:
    """What a reader calls the run at this rate."""
    return f"rate {rate:g}" + (f", long prefill {threshold}" if threshold else "")


def complaint(row: dict[str, Any]) -> str | None:
    """That the engine could not keep up, in words; None when it could, or nobody can tell."""
    if row["kept_up"] is not False:
        return None
    where = run_name(row["rate"], row["long_prefill_token_threshold"])
    words = (
        f"{where}: the engine could not keep up, {row['served_req_s']:g} requests a second were served; those in "
        f"flight grew from {row['in_flight_half']} to {row['in_flight_end']} over the second half of the arrivals"
    )
    if row["arriving_seconds"] * 1000 < 4 * row["e2e_p50_ms"]:
        words += f" (which came in {row['arriving_seconds']:g} s, too few answers' lengths to be sure: take more)"
    return words


def _backlog(timelines: list[Timeline], rate: float) -> dict[str, Any]:
    """Requests due and not ended when half of the time of arrivals is over, and when all of it is."""
    end = max(timeline.arrival.due for timeline in timelines)
    half, whole = (_in_flight(timelines, moment) for moment in (end / 2, end))
    arrived = sum(timeline.arrival.due > end / 2 for timeline in timelines)
    kept_up = whole - half <= max(_GROWTH * arrived, _DEVIATIONS * math.sqrt(half + 1))
    return {
        "arriving_seconds": round(end, 3),
        "in_flight_half": half,
        "in_flight_end": whole,
        "kept_up": None if math.isinf(rate) else kept_up,
    }


def _in_flight(timelines: list[Timeline], moment: float) -> int:
    return sum(timeline.arrival.due <= moment < timeline.ended for timeline in timelines)


def _ratio(one: float | None, other: float | None) -> float | None:
    return round(one / other, 2) if one is not None and other else None
