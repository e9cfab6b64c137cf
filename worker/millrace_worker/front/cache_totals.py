"""What the prefix caches of all engines of a front have done: an engine that is replaced counts from 0."""

from __future__ import annotations

from collections import Counter

from millrace_worker.cache_stats import CacheStats


class CacheTotals:
    """The counts of metrics; what is there now is in `now`."""

    def __init__(self) -> None:
        self.now = CacheStats()
        self._before: Counter[tuple[str, str]] = Counter()

    def told(self, stats: CacheStats) -> None:
        """By the engine that runs."""
        self.now = stats

    def engine_died(self) -> None:
        self._before += _counts(self.now)
        self.now = CacheStats()

    def by_label(self, name: str) -> dict[str, int]:
        """A count of CacheStats that is a dict, by its keys."""
        both = self._before + _counts(self.now)
        return {label: count for (field, label), count in sorted(both.items()) if field == name}

    def count(self, name: str) -> int:
        return (self._before + _counts(self.now))[name, ""]

    @property
    def ceiling(self) -> float:
        """What share of the blocks looked up in this engine could have been found at all."""
        lookups = self.now.lookups
        return (lookups - self.now.distinct) / lookups if lookups else 0.0


def _counts(stats: CacheStats) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for name in stats.__struct_fields__:
        value = getattr(stats, name)
        if isinstance(value, dict):
            found.update({(name, label): count for label, count in value.items()})
        elif isinstance(value, int):
            found[name, ""] = value
    return found
