"""How many different blocks were looked up, roughly."""

from __future__ import annotations

import hashlib

import pytest

from millrace_worker.engine.hit_ceiling import HitCeiling


def names(start: int, count: int) -> list[bytes]:
    return [hashlib.sha256(i.to_bytes(8, "little")).digest() for i in range(start, start + count)]


@pytest.mark.parametrize("count", [0, 1, 100, 5000, 60_000, 300_000])
def test_distinct_names_are_counted_once(count: int) -> None:
    ceiling = HitCeiling()
    for start in range(0, count, 1000):
        for _ in range(2):
            ceiling.add(names(start, min(1000, count - start)))
    assert ceiling.lookups == 2 * count
    assert abs(ceiling.distinct - count) <= 0.03 * count


def test_there_are_never_more_than_were_looked_up() -> None:
    ceiling = HitCeiling()
    for number in range(200):
        ceiling.add(names(number, 1))
        assert 0.9 * number <= ceiling.distinct <= ceiling.lookups
