"""Lists that are kept in order."""

from __future__ import annotations

from bisect import bisect_left
from typing import TypeVar

Item = TypeVar("Item", int, tuple[float, int])


def discard(ordered: list[Item], item: Item) -> None:
    """Takes `item` out, if it is in."""
    index = bisect_left(ordered, item)
    if index < len(ordered) and ordered[index] == item:
        del ordered[index]
