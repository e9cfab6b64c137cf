"""Counts of the prefix cache go on when an engine is replaced; what is there now does not."""

from __future__ import annotations

from millrace_schemas.exposition import render
from millrace_worker.cache_metrics import cache_families
from millrace_worker.cache_stats import CacheStats
from millrace_worker.frames import Started
from millrace_worker.front.cache_totals import CacheTotals
from millrace_worker.front.totals import Totals
from scraped import Scraped


def test_counts_go_on_with_the_next_engine() -> None:
    cache = CacheTotals()
    assert (cache.by_label("loads"), cache.count("swapped_blocks"), cache.ceiling) == ({}, 0, 0.0)
    cache.told(CacheStats(loads={"cpu": 2}, swapped_blocks=3, blocks={"gpu": 9}, lookups=10, distinct=4))
    cache.told(CacheStats(loads={"cpu": 5}, swapped_blocks=4, blocks={"gpu": 8}, lookups=10, distinct=4))
    assert (cache.by_label("loads"), cache.count("swapped_blocks"), cache.ceiling) == ({"cpu": 5}, 4, 0.6)
    cache.engine_died()
    assert (cache.by_label("loads"), cache.count("swapped_blocks"), cache.ceiling) == ({"cpu": 5}, 4, 0.0)
    assert cache.now.blocks == {}
    cache.told(CacheStats(loads={"cpu": 1, "disk": 1}, swapped_blocks=1))
    assert (cache.by_label("loads"), cache.count("swapped_blocks")) == ({"cpu": 6, "disk": 1}, 5)


def test_metrics_of_tiers() -> None:
    totals, cache = Totals(), CacheTotals()
    totals.begun(100, Started(1, 48, {"gpu": 16, "cpu": 32}))
    totals.begun(100, Started(2, 16, {"gpu": 16}))
    cache.told(
        CacheStats(
            blocks={"gpu": 9, "cpu": 7},
            bytes={"gpu": 900, "cpu": 700},
            open={"cpu": 1, "disk": 0},
            loads={"cpu": 3},
            recomputes={"disk": 2},
            misses={"absent": 4},
            unwritten={"busy": 5},
            swapped_blocks=6,
            lookups=20,
            distinct=15,
        )
    )
    page = Scraped(render(cache_families(totals, cache)))
    name = "millrace_prefix_cache_"
    assert (page.value(f"{name}queries_total"), page.value(f"{name}hits_total")) == (200, 64)
    assert page.value(f"{name}tier_hits_total", tier="gpu") == page.value(f"{name}tier_hits_total", tier="cpu") == 32
    assert (page.value(f"{name}blocks", tier="cpu"), page.value(f"{name}bytes", tier="gpu")) == (7, 900)
    assert (page.value(f"{name}tier_open", tier="cpu"), page.value(f"{name}tier_open", tier="disk")) == (1, 0)
    assert page.value(f"{name}loads_total", tier="cpu") == 3
    assert page.value(f"{name}recomputes_total", tier="disk") == 2
    assert page.value(f"{name}misses_total", reason="absent") == 4
    assert page.value(f"{name}unwritten_blocks_total", reason="busy") == 5
    assert page.value(f"{name}swapped_blocks_total") == 6
    assert page.value(f"{name}hit_ceiling_ratio") == 0.25
