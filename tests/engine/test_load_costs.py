"""What is read and what is computed, decided by what both took; and how often a name was seen."""

from __future__ import annotations

import hashlib

from millrace_worker.engine.frequency_sketch import FrequencySketch
from millrace_worker.engine.load_costs import LoadCosts


def learnt() -> LoadCosts:
    """A disk of 1 MB/s, a link of 10 MB/s and a device of 1,000 tokens/s."""
    costs = LoadCosts()
    for _ in range(50):
        costs.observe_read("disk", 500_000, 0.5)
        costs.observe_read("cpu", 500_000, 0.05)
        costs.observe_step(500, 20, 0.5)
    return costs


def test_nothing_is_known_before_it_was_seen() -> None:
    costs = LoadCosts()
    assert costs.read_seconds("disk", 1) is None
    assert costs.recompute_seconds(1) is None
    costs = learnt()
    assert costs.read_seconds("disk", 2 * 10**6) == 2.0
    assert costs.read_seconds("cpu", 2 * 10**6) == 0.2
    assert costs.recompute_seconds(100) == 0.1


def test_steps_that_say_little_about_prompts_are_left_out() -> None:
    costs = learnt()
    costs.observe_step(8, 0, 10.0)
    costs.observe_step(100, 200, 10.0)
    assert costs.tokens_per_second == 1000.0


def test_a_tier_that_was_slow_is_tried_again_once_in_a_while() -> None:
    costs = learnt()
    tried = [costs.refuse("disk") for _ in range(640)]
    assert sum(tried) == 10
    assert not any(tried[:60])
    assert not costs.refuse("s3")


def names(count: int, seed: int = 0) -> list[bytes]:
    return [hashlib.sha256(f"{seed} {i}".encode()).digest() for i in range(count)]


def test_names_are_counted() -> None:
    sketch = FrequencySketch()
    assert sketch.add(names(5)).tolist() == [1] * 5
    assert sketch.add(names(7)).tolist() == [2] * 5 + [1] * 2
    assert sketch.counts(names(8)).tolist() == [2] * 5 + [1] * 2 + [0]
    assert sketch.add([]).tolist() == sketch.counts([]).tolist() == []


def test_of_many_names_few_are_counted_too_high_and_old_ones_are_forgotten() -> None:
    sketch = FrequencySketch()
    sketch.add(names(3))
    high = sum(int((sketch.add(names(100, seed)) > 1).sum()) for seed in range(1, 1000))
    assert high < 100_000 / 50
    assert sketch.counts(names(3)).max() <= 1


def test_a_count_does_not_overflow() -> None:
    sketch = FrequencySketch()
    for _ in range(600):
        counts = sketch.add(names(2))
    assert counts.min() >= 255
