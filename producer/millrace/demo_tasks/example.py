"""One question of the demo with its only right answer."""

from __future__ import annotations

from typing import NamedTuple


class Example(NamedTuple):
    """A user text and the exact answer to it.

    `key` is what the question is about (the two numbers of a sum, say), however it is worded: the split into training
    and held-out examples goes by it, so a held-out question is never seen in other words either.
    """

    task: str
    user: str
    answer: str
    key: str
