"""Which of several free places to give to blocks, so that neighbours stay neighbours and are copied as one."""

from __future__ import annotations


def side_by_side(fixed: list[int], free: list[int]) -> list[int]:
    """`free`, as many as `fixed`, in an order that gives each of `fixed` the one of its own rank."""
    places = [0] * len(fixed)
    for place, index in zip(sorted(free), sorted(range(len(fixed)), key=fixed.__getitem__), strict=True):
        places[index] = place
    return places
