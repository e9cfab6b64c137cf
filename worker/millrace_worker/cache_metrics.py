"""A worker's metrics of its prefix cache, by tier: "gpu" is the device's memory, be it a CPU's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from millrace_schemas.exposition import Family, one

from .front.cache_totals import CacheTotals
from .front.totals import Totals


def cache_families(totals: Totals, cache: CacheTotals) -> Iterator[Family]:
    """`cache` is about a second old."""
    now = cache.now
    yield one(
        "millrace_prefix_cache_queries_total",
        "counter",
        "Tokens of prompts that it was asked for.",
        totals.prompt_tokens,
    )
    yield one("millrace_prefix_cache_hits_total", "counter", "Tokens of prompts that it had.", totals.cached_tokens)
    hits = {"gpu": 0, **totals.cached_by_tier}
    yield _by_tier("millrace_prefix_cache_tier_hits_total", "counter", "Those of them that each tier had.", hits)
    yield _by_tier("millrace_prefix_cache_blocks", "gauge", "Blocks that can be found.", now.blocks)
    yield _by_tier("millrace_prefix_cache_bytes", "gauge", "What these take.", now.bytes)
    yield _by_tier(
        "millrace_prefix_cache_tier_open",
        "gauge",
        "Whether a lower tier that was asked for can be used: 1, or 0 while it is not open.",
        now.open,
    )
    yield _by_tier(
        "millrace_prefix_cache_loads_total", "counter", "Sequences that a tier was read for.", cache.by_label("loads")
    )
    yield _by_tier(
        "millrace_prefix_cache_recomputes_total",
        "counter",
        "Sequences for which computing was quicker than reading what a tier had.",
        cache.by_label("recomputes"),
    )
    yield _by_reason(
        "millrace_prefix_cache_misses_total",
        "Sequences whose next block was not had from a lower tier.",
        cache.by_label("misses"),
    )
    yield _by_reason(
        "millrace_prefix_cache_pinned_misses_total",
        "Sequences that began with a pinned prefix and did not find all of it.",
        cache.by_label("pinned_misses"),
    )
    yield _by_reason(
        "millrace_prefix_cache_s3_misses_total",
        "Sequences whose next block the disk had not and the bucket did not give, and fetches that fell short.",
        cache.by_label("s3_misses"),
    )
    yield _by_reason(
        "millrace_prefix_cache_s3_failures_total",
        "Requests to the bucket that failed.",
        cache.by_label("s3_failures"),
    )
    yield _by_reason(
        "millrace_prefix_cache_unwritten_blocks_total",
        "Blocks worth keeping that a lower tier did not take.",
        cache.by_label("unwritten"),
    )
    yield one(
        "millrace_prefix_cache_swapped_blocks_total",
        "counter",
        "Blocks of preempted sequences that were copied to host memory.",
        cache.count("swapped_blocks"),
    )
    yield one(
        "millrace_prefix_cache_hit_ceiling_ratio",
        "gauge",
        "Share of looked-up blocks that were looked up before, since the engine started: more no cache can find.",
        cache.ceiling,
    )


def _by_tier(name: str, kind: Literal["counter", "gauge"], text: str, counts: Mapping[str, float]) -> Family:
    return Family(name, kind, text, [({"tier": tier}, count) for tier, count in counts.items()])


def _by_reason(name: str, text: str, counts: Mapping[str, float]) -> Family:
    return Family(name, "counter", text, [({"reason": reason}, count) for reason, count in counts.items()])
