"""What the tiers of the prefix cache were asked for and had, since the engine's start."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from millrace_worker.cache_stats import CacheStats

from .disk_tier import DiskTier
from .host_tier import HostTier
from .s3_cache import NoS3, S3Cache


@dataclass(slots=True)
class TierCounts:
    """The names are those of CacheStats."""

    prompt_tokens: int = 0
    #: By tier.
    hit_tokens: Counter[str] = field(default_factory=Counter)
    loads: Counter[str] = field(default_factory=Counter)
    recomputes: Counter[str] = field(default_factory=Counter)
    #: By reason.
    misses: Counter[str] = field(default_factory=Counter)
    unwritten: Counter[str] = field(default_factory=Counter)

    def stats(
        self, host: HostTier | None, disk: DiskTier | None, s3: S3Cache | NoS3, *, swapped_blocks: int
    ) -> CacheStats:
        """With what these tiers hold and have counted themselves."""
        index = None if disk is None else disk.index
        blocks, sizes, is_open = {}, {}, {}
        if host is not None:
            blocks["cpu"], sizes["cpu"], is_open["cpu"] = host.num_blocks, host.used_bytes, int(host.is_open)
        if disk is not None:
            is_open["disk"] = int(index is not None)
        if index is not None:
            blocks["disk"], sizes["disk"] = index.num_records, index.used_bytes
        totals: dict[str, Any] = {} if disk is None else dict(disk.totals)
        totals |= s3.stats
        if s3.num_blocks:
            blocks["s3"], sizes["s3"] = s3.num_blocks, s3.num_bytes
        return CacheStats(
            blocks=blocks,
            bytes=sizes,
            open=is_open | s3.is_open,
            prompt_tokens=self.prompt_tokens,
            hit_tokens=dict(+self.hit_tokens),
            loads=dict(self.loads + s3.loads),
            recomputes=dict(self.recomputes + s3.recomputes),
            swapped_blocks=swapped_blocks,
            misses=dict(self.misses),
            unwritten=dict(self.unwritten + (Counter[str]() if disk is None else disk.unwritten)),
            changed_identity=() if index is None else index.changed,
            **totals,
        )
