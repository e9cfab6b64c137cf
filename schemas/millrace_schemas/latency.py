"""Latencies as counts in buckets: small enough for a heartbeat, and exact sums over workers and times."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

#: Bucket 0 ends at one millisecond, each further one at 2 ** (1/4) times the end of the one before it.
_FIRST, _PER_OCTAVE = 0.001, 4
#: The last bucket takes everything above 6 days.
_LAST = 116


class Latencies(msgspec.Struct, frozen=True, kw_only=True):
    """How many of the jobs of a lane that a worker completed lie in which bucket. Seconds since `submit`."""

    #: To the first token; of jobs that needed one attempt.
    first_token: dict[int, int] = {}
    #: To the end.
    total: dict[int, int] = {}


def bucket_of(seconds: float) -> int:
    """The bucket that a latency is counted in."""
    if seconds <= _FIRST:
        return 0
    return min(_LAST, math.ceil(_PER_OCTAVE * math.log2(seconds / _FIRST)))


def percentile(counts: Mapping[int, int], share: float) -> float | None:
    """Seconds that `share` of those counted do not exceed, within a bucket's 19 %; None when none is counted."""
    wanted = share * sum(counts.values())
    if wanted <= 0:
        return None
    below = 0
    for bucket in sorted(counts):
        if below + counts[bucket] >= wanted:
            # As if those of a bucket lay evenly in it, on the scale of its width.
            inside = (wanted - below) / counts[bucket]
            return float(_FIRST * 2 ** ((bucket - 1 + inside) / _PER_OCTAVE))
        below += counts[bucket]
    return None
