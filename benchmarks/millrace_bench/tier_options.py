"""Which tiers of the prefix cache a benchmark measures, and how its engines are told of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

#: The word for no tiers.
NONE = "none"
_TIERS = ("cpu", "disk", "s3")


class TierOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`tiers` are those asked for, from the fastest to the slowest; not all of them can always be had."""

    tiers: tuple[str, ...]
    cpu_cache_gb: float
    #: In which fresh directories are made, and deleted at the end; None: where temporary files are.
    disk_cache_dir: Path | None = None
    s3_cache: str | None = None
    s3_endpoint_url: str | None = None
    #: How often an engine is killed and started again.
    restarts: int = 3

    def why_not(self, tier: str) -> str:
        """Why a tier that was asked for cannot be had; "" when it can."""
        if tier == "cpu" and self.cpu_cache_gb <= 0:
            return "--cpu-cache-gb gives it no memory"
        if tier == "s3" and self.s3_cache is None:
            return "--s3-cache names no bucket"
        if tier == "s3" and "disk" not in self.tiers:
            return "what is fetched from a bucket is kept on the disk: it needs disk among --tiers"
        return ""

    @property
    def available(self) -> tuple[str, ...]:
        return tuple(tier for tier in self.tiers if not self.why_not(tier))

    def flags(self, directory: Path, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
        """Settings of an engine with the available tiers, whose disk tier uses this directory."""
        tiers = [tier for tier in self.available if tier not in without]
        flags: dict[str, Any] = {}
        if "cpu" in tiers:
            flags["cpu_cache_gb"] = self.cpu_cache_gb
        if "disk" in tiers:
            flags["disk_cache_dir"] = str(directory)
        if "s3" in tiers:
            flags |= {"s3_cache": self.s3_cache, "s3_endpoint_url": self.s3_endpoint_url}
        return flags

    def check(self, flags: Mapping[str, Any]) -> None:
        """Raises ValueError or ConfigError when an engine of these settings cannot have them."""
        from millrace_worker import config

        for tier in self.tiers:
            reason = self.why_not(tier)
            if reason:
                raise ValueError(f"--tiers has {tier}, but {reason}")
        config.load({**flags, **self.flags(Path())})

    @contextmanager
    def directory(self) -> Iterator[Path]:
        """A fresh one for disk tiers, gone at the end. Raises ValueError."""
        try:
            if self.disk_cache_dir is not None:
                self.disk_cache_dir.mkdir(parents=True, exist_ok=True)
            made = tempfile.TemporaryDirectory(
                prefix="millrace-bench-", dir=self.disk_cache_dir, ignore_cleanup_errors=True
            )
        except OSError as e:
            raise ValueError(f"--disk-cache-dir: no directory can be made there: {e}") from e
        with made as name:
            yield Path(name)


def parse_tiers(text: str) -> tuple[str, ...]:
    """The tiers of a comma-separated list, or of NONE. Raises ValueError."""
    names = [name.strip() for name in text.split(",") if name.strip() and name.strip() != NONE]
    unknown = [name for name in names if name not in _TIERS]
    if unknown:
        raise ValueError(f"--tiers is {text!r}; there are {', '.join(_TIERS)}, and {NONE}")
    return tuple(tier for tier in _TIERS if tier in names)
