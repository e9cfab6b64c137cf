"""Which prompts begin as others did lately: the engine has blocks of these beginnings, or will have."""

from __future__ import annotations

from collections import OrderedDict

#: Tokens that prompts must have in common at least, and how many different such beginnings are remembered.
_LEAST = 256
_REMEMBERED = 64


class Beginnings:
    """Remembers the latest prompt of each beginning."""

    def __init__(self) -> None:
        self._latest: OrderedDict[tuple[str, tuple[int, ...]], list[int]] = OrderedDict()

    def shared(self, salt: str, prompt: list[int]) -> int:
        """Tokens that `prompt` has in common with the latest one that began as it does; 0 for a new beginning."""
        if len(prompt) < _LEAST:
            return 0
        key = salt, tuple(prompt[:_LEAST])
        before = self._latest.get(key)
        self._latest[key] = prompt
        self._latest.move_to_end(key)
        if len(self._latest) > _REMEMBERED:
            self._latest.popitem(last=False)
        return 0 if before is None else _common(prompt, before)


def _common(one: list[int], other: list[int]) -> int:
    """Length of the longest common prefix. Slices are compared much faster than single tokens."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
