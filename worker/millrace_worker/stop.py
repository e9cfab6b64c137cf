"""Stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Iterable


class StopChecker:
    """Finds the first stop string in pushed text, and holds back text that may be the start of one.

    The first is the one that is complete first, of those the longest; so the result does not depend on how the text
    was cut into pieces. Text up to it is released, it and what follows never are. A caller with min_tokens pushes
    nothing before that many tokens: stop strings do not reach back into text that was released without being checked.
    """

    __slots__ = ("_held", "_stops", "matched")

    def __init__(self, stops: Iterable[str]):
        #: The stop string that was found.
        self.matched: str | None = None
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> str:
        """What can be released of the text so far; "" once a stop string was found."""
        if self.matched is not None:
            return ""
        text = self._held + text
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            _, start, self.matched = min(found)
            self._held = ""
            return text[:start]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What is still held back, when the text has ended without a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, short of all of `stop`."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start = text.find(stop[0], start + 1)
    return 0
