"""Percentiles of what was measured."""

from __future__ import annotations

from collections.abc import Iterable

SHARES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}


def percentile(ordered: list[float], share: float) -> float:
    """The value below which this share of an ascending list lies, between its neighbours on a straight line."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def in_ms(name: str, seconds: Iterable[float]) -> dict[str, float | None]:
    """`<name>_p50_ms` and so on; None where there is nothing to measure."""
    ordered = sorted(seconds)
    return {
        f"{name}_{key}_ms": round(percentile(ordered, share) * 1000, 3) if ordered else None
        for key, share in SHARES.items()
    }
