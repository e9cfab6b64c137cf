"""Sums: additions and differences of numbers up to three digits."""

from __future__ import annotations

from random import Random

from millrace.demo_tasks.example import Example

_PLUS = ("{a} + {b}", "{a} + {b} =", "{a}+{b}", "What is {a} + {b}?", "What is {a} plus {b}?", "Add {a} and {b}.")
_MINUS = (
    "{a} - {b}",
    "{a} - {b} =",
    "{a}-{b}",
    "What is {a} - {b}?",
    "What is {a} minus {b}?",
    "Subtract {b} from {a}.",
)


def _operand(rng: Random) -> int:
    return rng.randrange(10 ** rng.choice((1, 2, 2, 3, 3, 3)))


def make_sum(rng: Random) -> Example:
    """A sum or a difference of two numbers below 1,000; no difference is negative."""
    a, b = _operand(rng), _operand(rng)
    if rng.random() < 0.5:
        return Example("sums", rng.choice(_PLUS).format(a=a, b=b), str(a + b), f"{a}+{b}")
    a, b = max(a, b), min(a, b)
    return Example("sums", rng.choice(_MINUS).format(a=a, b=b), str(a - b), f"{a}-{b}")
