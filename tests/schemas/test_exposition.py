from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from millrace_schemas.exposition import Family, Histogram, one, render
from scraped import Scraped


def test_every_kind_reads_back() -> None:
    histogram = Histogram((0.1, 1, 10))
    for value in (0.05, 0.1, 0.5, 99):
        histogram.observe(value)
    histogram.observe(5, times=3)
    page = render(
        [
            one("millrace_a_total", "counter", "What a is.", 12),
            Family("millrace_b", "gauge", "What b is.", [({"lane": "batch"}, 0.25), ({"lane": "x"}, 1e17)]),
            one("millrace_c_seconds", "histogram", "What c is.", histogram),
        ],
        {"model": "m"},
    )
    found = Scraped(page)
    assert found.types == {"millrace_a": "counter", "millrace_b": "gauge", "millrace_c_seconds": "histogram"}
    assert found.value("millrace_a_total", model="m") == 12
    assert found.value("millrace_b", lane="batch", model="m") == 0.25
    assert found.value("millrace_b", lane="x") == 1e17
    buckets = [found.value("millrace_c_seconds_bucket", le=le) for le in ("0.1", "1", "10", "+Inf")]
    # A bucket holds what equals its upper end.
    assert buckets == [2, 3, 6, 7]
    assert found.value("millrace_c_seconds_count") == 7
    assert found.value("millrace_c_seconds_sum") == pytest.approx(0.05 + 0.1 + 0.5 + 99 + 15)


@pytest.mark.parametrize("text", ['say "no"', "a\\b", "two\nlines", "{},=", "Zürich"])
def test_labels_and_help_hold_any_text(text: str) -> None:
    page = render([Family("millrace_x", "gauge", text, [({"label": text}, 1)])])
    (family,) = text_string_to_metric_families(page)
    assert family.documentation == text
    assert family.samples[0].labels == {"label": text}


def test_a_page_of_nothing_is_empty() -> None:
    assert render([]) == ""
    assert render([Family("millrace_x_total", "counter", "None yet.")]).count("\n") == 2
