"""All of `millrace bench prefix` that runs on Millrace itself."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .comparison import Bench
from .copy_bench import copy_rates
from .prefix_bench import Cell, measure, prepare
from .restart_bench import RestartBench
from .results import Row
from .tier_bench import TierBench
from .tier_options import TierOptions
from .zero_hit_bench import zero_hit_loss

if TYPE_CHECKING:
    from millrace_worker.engine.engine import Engine

#: The prefix that is pinned and found again after a restart, if it is among those that are measured.
_RESTART_PREFIX = 2048
#: Requests that share nothing, where no cell says how many; and turns of them at least.
_APART, _LEAST_TURNS = 64, 3


class PrefixRun:
    """`wanted` are groups of requests, `prefixes` the lengths behind which first tokens are measured."""

    def __init__(
        self,
        bench: Bench,
        wanted: Sequence[Cell],
        prefixes: Sequence[int],
        own: int,
        answer: int,
        options: TierOptions,
        say: Callable[[str], None],
    ) -> None:
        self._bench, self._wanted, self._prefixes, self._own = bench, wanted, prefixes, own
        self._options, self._say = options, say
        group = max((cell.group for cell in wanted if cell.group <= _APART), default=_APART)
        self._apart = Cell(group, min(prefixes), 0, own, answer)

    def rows(self) -> Iterator[Row]:
        """As they come. Raises MillraceError, OSError."""
        with self._options.directory() as directory:
            # Processes first: an engine in this one does not give its memory back. Only a disk outlives them.
            if "disk" in self._options.tiers:
                yield from self._told(self._restart().rows(directory / "restart"))
            yield from self._told(self._on_one_engine(directory / "tiers"))

    def _restart(self) -> RestartBench:
        prefix = _RESTART_PREFIX if _RESTART_PREFIX in self._prefixes else self._prefixes[0]
        bench = self._bench
        return RestartBench(bench.flags, self._options, prefix, self._own, bench.temperature, self._say)

    def _on_one_engine(self, directory: Path) -> Iterator[Row]:
        from millrace_worker import config
        from millrace_worker.engine import garbage
        from millrace_worker.engine.engine import Engine

        bench = self._bench
        engine = Engine(config.load({**bench.flags, **self._options.flags(directory)}).engine)
        thresholds = gc.get_threshold()
        garbage.settle()
        try:
            prepare(engine, bench.temperature)
            yield from self._first_tokens(engine, directory)
            if engine.tiers is not None:
                turns = max(_LEAST_TURNS, bench.repeats)
                self._say(f"millrace, {self._apart.group} requests that share nothing, {2 * turns + 2} runs in turn")
                yield from zero_hit_loss(engine, self._apart, bench.temperature, turns)
                yield from copy_rates(engine)
            # Groups are on one tier, and each run computes its prefixes anew.
            engine.use_tiers(False)
            for cell in self._wanted:
                yield from measure(engine, cell, bench.temperature, bench.repeats)
        finally:
            engine.close()
            gc.unfreeze()
            gc.set_threshold(*thresholds)

    def _first_tokens(self, engine: Engine, directory: Path) -> Iterator[Row]:
        tiers = TierBench(engine, self._options, directory, self._bench.temperature)
        for length in self._prefixes:
            yield from tiers.first_tokens(length, self._own)

    def _told(self, rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            done = f"decode at {row.figures['decode_tok_s']:,.0f} tok/s" if "decode_tok_s" in row.figures else ""
            self._say(f"{row.engine}, {row.workload}: {row.failed or done or f'{row.seconds:.4f} s'}")
            yield row
