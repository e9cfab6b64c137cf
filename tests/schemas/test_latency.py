"""Latencies in buckets: percentiles of them are those of the latencies, within the width of a bucket."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from millrace_schemas import bucket_of, percentile

WIDTH = 2**0.25


@pytest.mark.parametrize("share", [0.5, 0.95, 1.0])
def test_a_percentile_is_right_within_a_bucket(share: float) -> None:
    drawn = random.Random(7)
    values = sorted(drawn.lognormvariate(0.0, 2.0) for _ in range(1000))
    found = percentile(Counter(map(bucket_of, values)), share)
    true = values[int(share * 1000) - 1]
    assert found is not None
    assert true / WIDTH <= found <= true * WIDTH


def test_one_latency_is_every_percentile_of_itself() -> None:
    for seconds in (0.0015, 0.04, 1.0, 60.0, 3600.0):
        for share in (0.01, 0.5, 0.99):
            found = percentile({bucket_of(seconds): 1}, share)
            assert found is not None
            assert seconds / WIDTH <= found <= seconds * WIDTH


def test_the_ends() -> None:
    assert bucket_of(-1.0) == bucket_of(0.0) == bucket_of(0.001) == 0
    assert bucket_of(0.0011) == 1
    assert bucket_of(1e9) == bucket_of(1e6) > bucket_of(86_400.0)
    assert percentile({}, 0.5) is None
    assert percentile({3: 0}, 0.5) is None
