"""`millrace bench latency`: requests arrive at a rate, and each token's time is taken. Here, the engine alone.

The engine is driven as its own process drives it: what has arrived is added, then a step is made, and its tokens count
from when it is done.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from millrace_worker.frames import AddSequence, SequenceParams

from . import throughput
from .arrivals import Arrival, arrivals, due_times
from .latency_figures import figures
from .timeline import Timeline
from .workloads import Job, warm_up

if TYPE_CHECKING:
    from millrace_worker.engine.engine import Engine

#: Of the workload, what a warm-up runs besides its longest prompt, and tokens of each answer.
_WARM_JOBS, _WARM_TOKENS = 16, 16


@dataclass(frozen=True, slots=True)
class Load:
    """What arrives: `requests` of them, or for `seconds`, at each rate; and what is asked of the answers."""

    rates: tuple[float, ...]
    requests: int | None
    seconds: float | None
    seed: int
    burstiness: float
    temperature: float
    #: Milliseconds by name, for goodput.
    limits: dict[str, float]
    #: Each is tried with all rates.
    thresholds: tuple[int, ...]

    def arrivals(self, jobs: list[Job], rate: float) -> list[Arrival]:
        """Those of one run. Raises ValueError when there are none."""
        times = due_times(
            rate, self.seed, requests=self.requests, seconds=self.seconds, burstiness=self.burstiness
        )  # fmt: skip
        if not times:
            raise ValueError(f"no request arrives within {self.seconds:g} s at a rate of {rate:g}; take longer")
        return arrivals(jobs, times, self.seed)


def measure(engine: Engine, jobs: list[Job], load: Load) -> Iterator[dict[str, Any]]:
    """A row for each threshold and rate, on one engine. Raises ValueError when a request is refused."""
    throughput.run(engine, warm_up(engine.ready.vocab_size), load.temperature)
    for threshold in load.thresholds:
        engine.scheduler.long_prefill_token_threshold = threshold
        drive(engine, warm_up_arrivals(jobs), load.temperature)
        for rate in load.rates:
            timelines = drive(engine, load.arrivals(jobs, rate), load.temperature)
            yield figures(timelines, rate, load.limits, threshold)


def warm_up_arrivals(jobs: list[Job]) -> list[Arrival]:
    """Some requests at once, the longest prompt behind them, so that nothing is compiled while others are timed."""
    some = [*jobs[:_WARM_JOBS], max(jobs, key=lambda job: len(job.prompt))]
    return [Arrival(0.0, Job(job.prompt, min(job.max_tokens, _WARM_TOKENS))) for job in some]


def drive(engine: Engine, coming: list[Arrival], temperature: float) -> list[Timeline]:
    """Runs requests that arrive on their own, on an empty prefix cache.

    Raises ValueError when a request is refused, RuntimeError when an answer has another length than asked for.
    """
    engine.reset_prefix_cache()
    timelines = [Timeline(arrival) for arrival in coming]
    added = 0
    start = time.perf_counter()
    while added < len(coming) or engine.has_work:
        now = time.perf_counter() - start
        while added < len(coming) and coming[added].due <= now:
            job = coming[added].job
            params = SequenceParams(max_tokens=job.max_tokens, temperature=temperature, seed=added)
            engine.add(AddSequence(added, job.prompt, [], params))
            timelines[added].sent = now
            added += 1
        if not engine.has_work:
            time.sleep(max(0.0, coming[added].due - now))
            continue
        output = engine.advance()
        if output.refused:
            raise ValueError(f"request {output.refused[0].seq_id} was refused: {output.refused[0].message}")
        now = time.perf_counter() - start
        for started in output.started:
            timelines[started.seq_id].cached = started.cached
        for seq_id, tokens in output.tokens:
            timelines[seq_id].add(now, len(tokens))
        # As in a worker, where outputs are on their way by then.
        engine.tend()
    for number, timeline in enumerate(timelines):
        timeline.check(number)
    return timelines
