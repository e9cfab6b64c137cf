"""What a system prompt that requests share gains: decode and prefill, on one engine in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from millrace_worker.frames import AddSequence, SequenceParams

from .results import ENGINE, UNGROUPED, Row
from .workloads import Job, behind, warm_up

if TYPE_CHECKING:
    from millrace_worker.engine.engine import Engine

#: Fewest steps with all sequences for a rate of decode.
_LEAST_STEPS = 8


class Cell(msgspec.Struct, frozen=True):
    """`group` requests behind each of so many system prompts, all there at the start."""

    group: int
    #: Tokens of a system prompt.
    prefix: int
    #: 0: every request has as many tokens, and shares none of them.
    systems: int
    #: Tokens of each request behind the system prompt, and of its answer.
    own: int
    answer: int

    @property
    def sequences(self) -> int:
        return self.group * max(1, self.systems)

    @property
    def key(self) -> str:
        return f"{self.group}x{self.prefix}x{self.systems}"

    @property
    def name(self) -> str:
        if self.systems == 0:
            return f"{self.group:,} of {self.prefix + self.own:,} that share nothing"
        times = "" if self.systems == 1 else f"{self.systems} x "
        return f"{times}{self.group:,} behind {self.prefix:,}"

    def jobs(self, vocab_size: int) -> list[Job]:
        return behind(vocab_size, self.group, self.prefix, self.systems, self.own, self.answer)

    def why_not(self, engine: Engine) -> str:
        """Why the engine cannot run all of it at once; "" when it can."""
        ready = engine.ready
        tokens, size = self.prefix + self.own + self.answer, ready.block_size
        if tokens > ready.max_model_len:
            return f"a request takes {tokens:,} tokens; this engine serves {ready.max_model_len:,}"
        if self.sequences > ready.max_num_seqs:
            return f"a step has room for {ready.max_num_seqs:,} sequences, not {self.sequences:,}"
        common = self.prefix // size
        # A block more for each, so that none waits for another to end.
        blocks = self.systems * common + self.sequences * (-(-tokens // size) + 1 - (common if self.systems else 0))
        if blocks > ready.num_blocks:
            return f"it takes {blocks:,} blocks of {size} tokens; this cache has {ready.num_blocks:,}"
        return ""


def cells(groups: Sequence[int], prefixes: Sequence[int], systems: Sequence[int], own: int, answer: int) -> list[Cell]:
    """All combinations, and for each group as many requests of the shortest prefix's length that share nothing."""
    shared = [Cell(group, prefix, count, own, answer) for count in systems for prefix in prefixes for group in groups]
    apart = [Cell(group, min(prefixes), 0, own, answer) for group in groups]
    return list(dict.fromkeys([*shared, *apart]))


class Run(msgspec.Struct, frozen=True):
    """What became of sequences that were all there at the start."""

    seconds: float
    #: Until each had its first token.
    first_seconds: float
    #: Output tokens a second while all sequences decode, and steps of that time.
    decode_tok_s: float
    decode_steps: int
    cached_tokens: int
    steps: int
    #: Steps that read shared runs once, and tokens of a context that they did not read again.
    shared_steps: int
    shared_tokens: int


def measure(engine: Engine, cell: Cell, temperature: float, repeats: int) -> Iterator[Row]:
    """A row with grouping and one without, of runs that take turns, each on an empty prefix cache."""
    reason = cell.why_not(engine)
    can_group = engine.runner.can_share_runs
    engines = (ENGINE, UNGROUPED) if can_group else (ENGINE,)
    runs: dict[str, list[Run]] = {name: [] for name in engines}
    if not reason:
        jobs = cell.jobs(engine.ready.vocab_size)
        try:
            for _ in range(repeats):
                for name, found in runs.items():
                    engine.runner.share_runs = name == ENGINE
                    found.append(run(engine, jobs, temperature))
        except NotMeasured as e:
            reason = str(e)
        finally:
            engine.runner.share_runs = True
    for name, found in runs.items():
        yield _failed(name, cell, reason) if reason else _row(name, cell, jobs, found)
    if not can_group:
        yield _failed(UNGROUPED, cell, reason or f"grouping is off on {engine.ready.device}: both would be the same")


def prepare(engine: Engine, temperature: float) -> None:
    """Compiles what is compiled at first use."""
    for i, job in enumerate(warm_up(engine.ready.vocab_size, engine.ready.max_model_len)):
        engine.add(AddSequence(i, job.prompt, [], SequenceParams(max_tokens=job.max_tokens, temperature=temperature)))
    while engine.has_work:
        engine.step()


class NotMeasured(Exception):
    """A run is not what it should be; the message says why."""


def run(engine: Engine, jobs: list[Job], temperature: float) -> Run:
    """All of them at once, on an empty prefix cache of the device. Raises NotMeasured."""
    engine.reset_prefix_cache()
    preemptions = engine.scheduler.num_preemptions
    waiting = set(range(len(jobs)))
    cached = steps = decoded = decode_steps = shared_steps = shared_tokens = 0
    began = ended = 0.0
    start = time.perf_counter()
    for i, job in enumerate(jobs):
        engine.add(AddSequence(i, job.prompt, [], params(job, temperature, i)))
    while engine.has_work:
        output = engine.step()
        steps += 1
        shared_steps += output.shared_saved > 0
        shared_tokens += output.shared_saved
        if output.refused:
            raise NotMeasured(f"it was refused: {output.refused[0].message}")
        cached += sum(started.cached for started in output.started)
        if waiting:
            waiting.difference_update(seq_id for seq_id, _ in output.tokens)
            began = 0.0 if waiting else time.perf_counter()
        elif not ended:
            decoded += len(output.tokens)
            decode_steps += 1
            # Those that end now were in this step, too.
            ended = time.perf_counter() if output.finished else 0.0
    seconds = time.perf_counter() - start
    if engine.scheduler.num_preemptions != preemptions:
        raise NotMeasured("sequences were preempted: the cache is too small for all at once")
    if decode_steps < _LEAST_STEPS:
        raise NotMeasured(f"only {decode_steps} steps had all sequences: the answers are too short")
    return Run(
        seconds,
        began - start,
        decoded / (ended - began),
        decode_steps,
        cached,
        steps,
        shared_steps,
        shared_tokens,
    )


def params(job: Job, temperature: float, seed: int, *, marked: bool = False) -> SequenceParams:
    """`marked`: the tiers keep its prompt at the first sighting."""
    return SequenceParams(max_tokens=job.max_tokens, temperature=temperature, seed=seed, marked=marked)


def _row(engine: str, cell: Cell, jobs: list[Job], runs: list[Run]) -> Row:
    """Rates of the whole run and of decode are each the best; counts are of the first run, which all have alike."""
    prompts, outputs = sum(len(job.prompt) for job in jobs), sum(job.max_tokens for job in jobs)
    best = min(run.seconds for run in runs)
    first, decode = runs[0], [run.decode_tok_s for run in runs]
    figures = {
        "group": cell.group,
        "prefix": cell.prefix,
        "systems": cell.systems,
        "decode_tok_s": round(max(decode), 1),
        "decode_tok_s_slowest": round(min(decode), 1),
        "decode_steps": first.decode_steps,
        "steps": first.steps,
        "cached_tokens": first.cached_tokens,
        "computed_tokens": prompts - first.cached_tokens,
        "shared_steps": first.shared_steps,
        "shared_tokens_per_step": first.shared_tokens / max(1, first.shared_steps),
    }
    if cell.systems:
        prefixes = prompts - first.cached_tokens - cell.sequences * cell.own
        figures["prefix_computed_times"] = round(prefixes / (cell.systems * cell.prefix), 3)
    return Row(
        engine=engine,
        workload=cell.name,
        requests=len(jobs),
        prompt_tokens=prompts,
        output_tokens=outputs,
        seconds=best,
        all_seconds=tuple(round(run.seconds, 3) for run in runs),
        output_tok_s=round(outputs / best, 1),
        total_tok_s=round((prompts + outputs) / best, 1),
        figures=figures,
    )


def _failed(engine: str, cell: Cell, reason: str) -> Row:
    return Row(engine=engine, workload=cell.name, failed=reason)
