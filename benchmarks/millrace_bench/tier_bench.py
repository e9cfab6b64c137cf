"""Seconds to the first token of a request alone, by the tier of the prefix cache that has its prefix."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from millrace_worker.frames import AddSequence

from .first_token import FirstToken, FirstTokenClock, first_token_row
from .prefix_bench import Cell, params
from .results import ENGINE, Row
from .tier_options import TierOptions
from .workloads import Job, behind, fixed

if TYPE_CHECKING:
    from millrace_worker.engine.engine import Engine

#: Seeds of prompts, so that no two parts of a bench share any.
_COLD, _PREFIX = 1_000_000, 2_000_000
_REPEATS = 5
#: Seconds for a prefix to come into every tier.
_FILL_SECONDS = 60.0


class TierBench:
    """On one engine. `directory` is that of its disk tier."""

    def __init__(self, engine: Engine, options: TierOptions, directory: Path, temperature: float) -> None:
        self._engine, self._options, self._directory, self._temperature = engine, options, directory, temperature

    def first_tokens(self, prefix: int, own: int) -> Iterator[Row]:
        """Rows for a prefix that is new, one that the device has, and one in each tier below it, fetched whatever
        that takes and as the cost model decides.
        """
        engine, name = self._engine, f"first token behind {prefix:,}"
        reason = Cell(1, prefix, 1, own, 1).why_not(engine)
        if reason:
            yield from (Row(engine=ENGINE, workload=f"{name}, {tier}", failed=reason) for tier in self._names)
            return
        vocabulary, found = engine.ready.vocab_size, prefix // engine.ready.block_size * engine.ready.block_size
        runs = self._cold(fixed(vocabulary, _REPEATS, prefix + own, 1, _COLD + prefix))
        cold = first_token_row(f"{name}, cold", runs, prefix + own, expected={})
        yield cold
        # Each has tokens of its own that no other has: else these were found, too.
        jobs = iter(behind(vocabulary, 100 * _REPEATS, prefix, 1, own, 1, seed=_PREFIX + prefix))
        yield first_token_row(f"{name}, gpu", self._on_device(jobs), prefix + own, expected={"gpu": found})
        if self._options.tiers:
            yield from self._lower(name, jobs, prefix, own, cold)

    @property
    def _names(self) -> list[str]:
        return ["cold", "gpu", *self._options.tiers]

    def _cold(self, jobs: list[Job]) -> list[FirstToken]:
        found = []
        for job in jobs:
            self._engine.reset_prefix_cache()
            found.append(self._first_token(job))
        return found

    def _on_device(self, jobs: Iterator[Job]) -> list[FirstToken]:
        found = []
        for _ in range(_REPEATS):
            self._engine.reset_prefix_cache()
            self._first_token(next(jobs))
            found.append(self._first_token(next(jobs)))
        return found

    def _lower(self, name: str, jobs: Iterator[Job], prefix: int, own: int, cold: Row) -> Iterator[Row]:
        tiers, size = self._options.available, self._engine.ready.block_size
        chain = chain_of(next(jobs).prompt[:prefix], size)
        missing = self._fill(jobs, chain)
        for tier in self._options.tiers:
            reason = self._options.why_not(tier) or missing.get(tier, "")
            if reason:
                yield Row(engine=ENGINE, workload=f"{name}, {tier}", failed=reason)
                continue
            # What is slower has it as well: only faster ones would have it first.
            faster = tiers[: tiers.index(tier)]
            runs = self._from_tier(jobs, faster, always_load=True)
            expected = {tier: len(chain) * size}
            row = first_token_row(f"{name}, {tier}", runs, prefix + own, expected=expected, figures=_of(cold, runs))
            yield row
            if not row.failed:
                runs = self._from_tier(jobs, faster, always_load=False)
                loaded = sum(one.by_tier.get(tier, 0) > 0 for one in runs) / len(runs)
                figures = {"loaded": loaded, **_of(cold, runs)}
                yield first_token_row(f"{name}, {tier} as decided", runs, prefix + own, figures=figures)

    def _fill(self, jobs: Iterator[Job], chain: list[bytes]) -> dict[str, str]:
        """Brings the prefix of `jobs` into all tiers; why it did not come into those where it did not."""
        tiers, engine, end = self._engine.tiers, self._engine, time.monotonic() + _FILL_SECONDS
        if tiers is None:
            return dict.fromkeys(self._options.available, "this engine has no tiers")
        tiers.switches.wait_open(_FILL_SECONDS)
        missing = list(self._options.available)
        while missing and time.monotonic() < end:
            # A tier takes so much at a time: what comes up again is offered again.
            self._first_token(next(jobs), marked=True)
            missing = [tier for tier in missing if not tiers.switches.wait_for(tier, chain, 0.5)]
        stats = engine.cache_stats
        counts = {"not written": stats.unwritten, "bucket": stats.s3_failures}
        why = "; ".join(f"{what}: {found}" for what, found in counts.items() if found) or "nothing failed"
        return dict.fromkeys(missing, f"the prefix was not in it after {_FILL_SECONDS:.0f} s ({why})")

    def _from_tier(self, jobs: Iterator[Job], faster: tuple[str, ...], *, always_load: bool) -> list[FirstToken]:
        assert self._engine.tiers is not None
        switches, found = self._engine.tiers.switches, []
        switches.always_load(always_load)
        try:
            for _ in range(_REPEATS):
                self._engine.reset_prefix_cache()
                for tier in faster:
                    switches.forget(tier)
                drop_pages(self._directory)
                found.append(self._first_token(next(jobs)))
        finally:
            switches.always_load(False)
        return found

    def _first_token(self, job: Job, *, marked: bool = False) -> FirstToken:
        engine, clock = self._engine, FirstTokenClock(time.perf_counter)
        engine.add(AddSequence(0, job.prompt, [], params(job, self._temperature, 0, marked=marked)))
        while engine.has_work:
            # As a worker does: the token is on its way before anything is copied out.
            clock.take(engine.advance())
            engine.tend()
        engine.scheduler.tier.settle()
        return clock.found


def chain_of(tokens: list[int], block_size: int) -> list[bytes]:
    """The names of the full blocks of a prompt that begins with these."""
    from millrace_worker.engine.prefix_cache import block_hash, root_of

    chain, parent = [], root_of("")
    for start in range(0, len(tokens) - block_size + 1, block_size):
        parent = block_hash(parent, tokens[start : start + block_size])
        chain.append(parent)
    return chain


def drop_pages(directory: Path) -> None:
    """Has the system forget what it holds of these files in memory, where it does as it is told."""
    for path in directory.rglob("*.kv"):
        with suppress(OSError):
            file = os.open(path, os.O_RDONLY)
            try:
                os.fsync(file)  # what is not written yet cannot be forgotten
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)


def _of(cold: Row, runs: list[FirstToken]) -> dict[str, float]:
    """The share of a cold request's time."""
    if cold.failed:
        return {}
    seconds = sorted(one.seconds for one in runs)
    return {"of_cold": round(seconds[len(seconds) // 2] / cold.seconds, 4)}
