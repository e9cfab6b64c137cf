"""A page of metrics as Prometheus' own client reads it, held to the rules that `promtool check metrics` has."""

from __future__ import annotations

import re

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

_NAME = re.compile(r"millrace_[a-z0-9_]+")


class Scraped:
    """Samples by name and labels."""

    def __init__(self, text: str):
        self.families: dict[str, Metric] = {}
        for family in text_string_to_metric_families(text):
            assert family.name not in self.families, f"{family.name} is there twice"
            self.families[family.name] = family
            _check(family)
        assert "# EOF" not in text

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples that have at least these labels."""
        return sum(
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    @property
    def types(self) -> dict[str, str]:
        return {name: family.type for name, family in self.families.items()}


def _check(family: Metric) -> None:
    name = family.name
    assert _NAME.fullmatch(name), name
    assert family.documentation, f"{name} has no help"
    assert family.type in ("counter", "gauge", "histogram"), f"{name} has no type"
    assert not re.search(r"milli(?!race)|_ms$|percent", name), f"{name}: seconds, bytes and ratios only"
    seen = set()
    for sample in family.samples:
        key = (sample.name, tuple(sorted(sample.labels.items())))
        assert key not in seen, f"{key} is there twice"
        seen.add(key)
        assert family.type == "gauge" or sample.value >= 0
        assert not (family.type == "gauge" and name.endswith("_total")), name
    if family.type == "histogram":
        _check_buckets(family)


def _check_buckets(family: Metric) -> None:
    series: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
    for sample in family.samples:
        if sample.name.endswith("_bucket"):
            labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le"))
            series.setdefault(labels, []).append((float(sample.labels["le"]), sample.value))
    for labels, buckets in series.items():
        assert buckets == sorted(buckets), "buckets do not rise"
        assert [count for _, count in buckets] == sorted(count for _, count in buckets)
        assert buckets[-1][0] == float("inf")
        (count,) = [
            s.value for s in family.samples if s.name.endswith("_count") and tuple(sorted(s.labels.items())) == labels
        ]
        assert buckets[-1][1] == count
