"""`millrace bench latency`: requests arrive at a rate, and each token's time is taken. Here, the engine alone.

The engine is driven as its own process drives it: what has arrived is added, then a step is made, and its tokens count
from when it is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from millrace_worker.frames import AddSequence, SequenceParams

from . import throughput
from .arrivals import Arrival, arrivals, due_times
from .latency_figures import figures, run_name
from .timeline import Timeline
from .workloads import Job, warm_up

if TYPE_CHECKING:
    from millrace_worker.engine.engine import Engine

#: Of the workload, what a warm-up runs besides its longest prompt, and tokens of each answer.
_WARM_JOBS, _WARM_TOKENS = 16, 16


@dataclass(frozen=True, slots=True)
class Load:
    """What arrives: `requests` of them, or for `seconds`, at each rate; and what is asked of the answers.

    With neither, each job of the workload arrives once. Raises ValueError when `seconds` are too few for a request at
    any rate, or a rate is infinite with them.
    """

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

    def __post_init__(self) -> None:
        if self.seconds is None:
            return
        for rate in self.rates:
            if not due_times(rate, self.seed, seconds=self.seconds, burstiness=self.burstiness):
                raise ValueError(f"no request arrives within {self.seconds:g} s at a rate of {rate:g}; take longer")

    def arrivals(self, jobs: list[Job], rate: float, vocab_size: int, run: int = 0) -> list[Arrival]:
        """Those of one run; runs of different numbers have different token ids."""
        count = len(jobs) if self.requests is None and self.seconds is None else self.requests
        times = due_times(rate, self.seed, requests=count, seconds=self.seconds, burstiness=self.burstiness)
        return arrivals(jobs, times, self.seed, vocab_size, run)


def measure(engine: Engine, jobs: list[Job], load: Load, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """A row for each threshold and rate, on one engine. Raises ValueError when a request is refused."""
    vocab_size = engine.ready.vocab_size
    throughput.run(engine, warm_up(vocab_size, engine.ready.max_model_len), load.temperature)
    for threshold in load.thresholds:
        engine.scheduler.long_prefill_token_threshold = threshold
        drive(engine, warm_up_arrivals(jobs), load.temperature)
        for rate in load.rates:
            coming = load.arrivals(jobs, rate, vocab_size)
            say(expected(coming, rate, threshold))
            yield figures(drive(engine, coming, load.temperature), rate, load.limits, threshold)


def expected(coming: list[Arrival], rate: float, threshold: int) -> str:
    """How long the arrivals of a run take, in words."""
    last = coming[-1].due
    span = f"over about {last:.{0 if last >= 10 else 1}f} s" if last else "at once"
    return f"{run_name(rate, threshold)}: {len(coming)} requests {span}"


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
