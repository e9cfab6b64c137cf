"""The first token of a request alone: when it came, and where the request's prefix was."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import msgspec

from millrace_worker.frames import StepOutput

from .results import ENGINE, Row

#: Where KV may be, from the fastest to the slowest; "gpu" is the block pool, on a CPU too.
TIERS = ("gpu", "cpu", "disk", "s3")


class FirstToken(msgspec.Struct, frozen=True):
    """Of one request."""

    #: From its arrival.
    seconds: float
    #: Tokens of its prompt that were found, by tier.
    by_tier: dict[str, int] = {}


class FirstTokenClock:
    """Reads the outputs of an engine that has one request. `now` counts seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now, self._began = now, now()
        self._seconds = 0.0
        self._by_tier: dict[str, int] = {}

    def take(self, output: StepOutput) -> bool:
        """Whether the request has ended."""
        for started in output.started:
            self._by_tier |= started.by_tier
        if output.tokens and not self._seconds:
            self._seconds = self._now() - self._began
        return bool(output.finished or output.refused)

    @property
    def found(self) -> FirstToken:
        return FirstToken(self._seconds, self._by_tier)


def first_token_row(
    workload: str,
    found: Sequence[FirstToken],
    prompt_tokens: int,
    *,
    expected: Mapping[str, int] | None = None,
    figures: Mapping[str, float] | None = None,
) -> Row:
    """The median of these; failed if tokens of any were found elsewhere than is `expected`."""
    for one in found:
        if one.seconds <= 0:
            return Row(engine=ENGINE, workload=workload, failed="no token came")
        if expected is not None and one.by_tier != expected:
            failed = f"of its prompt {_words(one.by_tier)} found, not {_words(expected, verb=False)}"
            return Row(engine=ENGINE, workload=workload, failed=failed)
    median = statistics.median(one.seconds for one in found)
    tokens = {f"{tier}_tokens": min(one.by_tier.get(tier, 0) for one in found) for tier in TIERS}
    return Row(
        engine=ENGINE,
        workload=workload,
        requests=1,
        prompt_tokens=prompt_tokens,
        output_tokens=1,
        seconds=median,
        all_seconds=tuple(round(one.seconds, 6) for one in found),
        output_tok_s=round(1 / median, 1),
        total_tok_s=round((prompt_tokens + 1) / median, 1),
        figures={
            "cached_tokens": min(sum(one.by_tier.values()) for one in found),
            **{name: count for name, count in tokens.items() if count},
            **(figures or {}),
        },
    )


def _words(by_tier: Mapping[str, int], *, verb: bool = True) -> str:
    counts = [f"{count:,} tokens in {tier}" for tier, count in by_tier.items()]
    words = " and ".join(counts) if counts else "nothing"
    if not verb:
        return words
    return f"{words} {'were' if counts else 'was'}"
