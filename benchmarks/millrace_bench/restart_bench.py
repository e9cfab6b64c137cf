"""An engine process that pinned a prefix is killed, and another starts on its directory: how warm does it begin?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from millrace_schemas import MillraceError
from millrace_worker.frames import PinnedPrefix

from .engine_process import EngineProcess
from .first_token import FirstToken, first_token_row
from .peer_process import PeerFailed, log_file
from .prefix_bench import params
from .results import ENGINE, Row
from .tier_options import TierOptions
from .workloads import Job, behind, fixed

#: Of a cold request's time to the first token, for the first request behind a pinned prefix after a restart.
MOST_OF_COLD = 0.35
#: Seconds that pinning host memory may cost the start.
MOST_DELAY = 10.0
_SEED = 4_000_000
_COLD = 5
#: Seconds for all records of the pin to be on the disk; between two looks.
_WRITE_SECONDS, _LOOK = 60.0, 0.05
#: The engine reports what its cache did this often at most, in seconds, while it has nothing to do.
_REPORT = 0.2
_SILENCE = 600.0


class _Start(msgspec.Struct, frozen=True):
    """One start on the directory of an engine that was killed."""

    ready_seconds: float
    pin_seconds: float
    #: Records that were read for the pin.
    read_blocks: int
    first: FirstToken
    cold: tuple[FirstToken, ...]
    #: The start of an engine without tiers, just after.
    bare_seconds: float


class RestartBench:
    """`flags` are those of an engine without tiers; `own` tokens follow the pinned prefix in a request."""

    def __init__(
        self,
        flags: dict[str, Any],
        options: TierOptions,
        prefix: int,
        own: int,
        temperature: float,
        say: Callable[[str], None],
    ) -> None:
        self._flags, self._options, self._prefix, self._own = flags, options, prefix, own
        self._temperature, self._say = temperature, say
        self._log = log_file("engine")
        self._names = (
            "restart: ready without tiers",
            "restart: ready with tiers",
            f"restart: pin of {prefix:,} resident",
            f"restart: first token behind {prefix:,}, pinned",
            f"restart: first token behind {prefix:,}, cold",
        )

    def rows(self, directory: Path) -> Iterator[Row]:
        """`directory` is for a disk tier, and empty."""
        reason = "" if "disk" in self._options.available else "it needs disk among --tiers: nothing else outlives it"
        starts: list[_Start] = []
        if not reason:
            try:
                blocks, tokens = self._pin_and_kill(directory)
                starts = [self._start(directory) for _ in range(self._options.restarts)]
            except (PeerFailed, MillraceError) as e:
                reason = str(e)
        if reason:
            log = str(self._log) if self._log.exists() else ""
            yield from (Row(engine=ENGINE, workload=name, failed=reason, log=log) for name in self._names)
            return
        yield from self._rows(starts, blocks, tokens)

    def _engine(self, directory: Path | None) -> EngineProcess:
        from millrace_worker import config

        tiers = {} if directory is None else self._options.flags(directory, without=("s3",))
        return EngineProcess(config.load({**self._flags, **tiers}).engine, self._log, _SILENCE)

    def _pin_and_kill(self, directory: Path) -> tuple[int, int]:
        """How many records the disk has of the pin, and their tokens."""
        with self._engine(directory) as engine:
            blocks = self._prefix // engine.ready.block_size
            engine.pin(self._pin(engine))
            end = time.monotonic() + _WRITE_SECONDS
            while (found := sum(1 for _ in directory.rglob("*.kv"))) < blocks:
                if time.monotonic() > end:
                    raise PeerFailed(
                        f"{found:,} of the pin's {blocks:,} blocks were on the disk after {_WRITE_SECONDS:.0f} s"
                    )
                time.sleep(_LOOK)
            self._say(f"an engine wrote {blocks:,} pinned blocks, and is killed")
        return blocks, blocks * engine.ready.block_size

    def _start(self, directory: Path) -> _Start:
        with self._engine(directory) as engine:
            pin_seconds = engine.pin(self._pin(engine))
            vocabulary = engine.ready.vocab_size
            first = self._first_token(engine, self._behind(vocabulary))
            jobs = fixed(vocabulary, _COLD, self._prefix + self._own, 1, _SEED + 1)
            cold = [self._first_token(engine, job) for job in jobs]
            time.sleep(_REPORT)
            # Its outputs bring the counts.
            self._first_token(engine, fixed(vocabulary, 1, 16, 1, _SEED + 2)[0])
            read = engine.stats.read_blocks
            ready_seconds = engine.seconds
        with self._engine(None) as bare:
            bare_seconds = bare.seconds
        self._say(f"started again: ready in {ready_seconds:.1f} s, pin resident in {pin_seconds:.2f} s")
        return _Start(ready_seconds, pin_seconds, read, first, tuple(cold), bare_seconds)

    def _behind(self, vocabulary: int) -> Job:
        return behind(vocabulary, 1, self._prefix, 1, self._own, 1, seed=_SEED)[0]

    def _pin(self, engine: EngineProcess) -> PinnedPrefix:
        return PinnedPrefix("pin_bench", self._behind(engine.ready.vocab_size).prompt[: self._prefix])

    def _first_token(self, engine: EngineProcess, job: Job) -> FirstToken:
        return engine.first_token(job.prompt, params(job, self._temperature, 0))

    def _rows(self, starts: list[_Start], blocks: int, tokens: int) -> Iterator[Row]:
        bare_name, ready_name, pin_name, first_name, cold_name = self._names
        bare = statistics.median(start.bare_seconds for start in starts)
        ready = statistics.median(start.ready_seconds for start in starts)
        yield _seconds(bare_name, [start.bare_seconds for start in starts], {})
        memory = self._options.cpu_cache_gb if "cpu" in self._options.available else 0.0
        figures = {"cpu_cache_gb": memory, "delay_seconds": round(ready - bare, 3)}
        yield _seconds(ready_name, [start.ready_seconds for start in starts], figures)
        read = min(start.read_blocks for start in starts)
        figures = {"blocks": blocks, "read_blocks": read, "ready_seconds": round(ready, 3)}
        if read < blocks:
            failed = f"of the pin's {blocks:,} blocks {read:,} were read from the disk, and the others computed"
            yield Row(engine=ENGINE, workload=pin_name, failed=failed)
        else:
            yield _seconds(pin_name, [start.pin_seconds for start in starts], figures)
        prompt = self._prefix + self._own
        cold = first_token_row(cold_name, [one for start in starts for one in start.cold], prompt, expected={})
        firsts = [start.first for start in starts]
        first = first_token_row(first_name, firsts, prompt, expected={"gpu": tokens})
        if not first.failed and not cold.failed:
            figures = {**first.figures, "of_cold": round(first.seconds / cold.seconds, 4)}
            first = msgspec.structs.replace(first, figures=figures)
        yield first
        yield cold


def _seconds(name: str, found: list[float], figures: dict[str, float]) -> Row:
    seconds = tuple(round(one, 4) for one in found)
    return Row(engine=ENGINE, workload=name, seconds=statistics.median(found), all_seconds=seconds, figures=figures)
