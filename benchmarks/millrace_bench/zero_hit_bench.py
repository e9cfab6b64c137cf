"""What tiers of the prefix cache cost a workload that finds nothing in them: decode and prefill, with and without."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .prefix_bench import Cell, NotMeasured, Run, run
from .results import ENGINE, Row
from .workloads import fixed

if TYPE_CHECKING:
    from millrace_worker.engine.engine import Engine

_SEED = 3_000_000
#: Of a rate.
MOST_LOSS = 0.01
_PREFILL, _DECODE = "nothing shared: prefill", "nothing shared: decode"


def zero_hit_loss(engine: Engine, cell: Cell, temperature: float, repeats: int) -> Iterator[Row]:
    """Two rows, of runs that take turns, each with prompts that no other has. Tiers are on afterwards."""
    reason = cell.why_not(engine)
    runs: dict[bool, list[Run]] = {False: [], True: []}
    length, vocabulary = cell.prefix + cell.own, engine.ready.vocab_size
    try:
        # Whoever is first in one turn is second in the next, and what is new to the process counts for neither.
        for number in range(0 if reason else repeats + 1):
            for on in (number % 2 == 0, number % 2 == 1):
                engine.use_tiers(on)
                jobs = fixed(vocabulary, cell.group, length, cell.answer, _SEED + 2 * number + on)
                found = run(engine, jobs, temperature)
                if found.cached_tokens:
                    raise NotMeasured(f"{found.cached_tokens:,} tokens were found in the cache")
                if number:
                    runs[on].append(found)
    except NotMeasured as e:
        reason = str(e)
    engine.use_tiers(True)
    if reason:
        yield from (Row(engine=ENGINE, workload=name, failed=reason) for name in (_PREFILL, _DECODE))
        return
    prompts, outputs = cell.group * length, cell.group * cell.answer
    for name in (_PREFILL, _DECODE):
        rates = {on: [_rate(name, one, prompts) for one in found] for on, found in runs.items()}
        seconds = [one.seconds for one in runs[True]]
        yield Row(
            engine=ENGINE,
            workload=name,
            requests=cell.group,
            prompt_tokens=prompts,
            output_tokens=outputs,
            seconds=statistics.median(seconds),
            all_seconds=tuple(round(one, 4) for one in seconds),
            output_tok_s=round(outputs / statistics.median(seconds), 1),
            total_tok_s=round((prompts + outputs) / statistics.median(seconds), 1),
            figures=_figures(rates[True], rates[False]),
        )


def _rate(name: str, one: Run, prompts: int) -> float:
    return prompts / one.first_seconds if name == _PREFILL else one.decode_tok_s


def _figures(on: Sequence[float], off: Sequence[float]) -> dict[str, float]:
    with_tiers, without = statistics.median(on), statistics.median(off)
    return {
        "with_tok_s": round(with_tiers, 1),
        "with_tok_s_least": round(min(on), 1),
        "with_tok_s_most": round(max(on), 1),
        "without_tok_s": round(without, 1),
        "without_tok_s_least": round(min(off), 1),
        "without_tok_s_most": round(max(off), 1),
        "loss": round(1 - with_tiers / without, 5),
    }
