"""Offline throughput of the engine alone: all requests at once, every answer runs to its length."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from millrace_worker.engine.host_times import HostTimes
from millrace_worker.frames import AddSequence, SequenceParams

from .workloads import Job, fixed

if TYPE_CHECKING:
    from millrace_worker.engine.engine import Engine


class Throughput(msgspec.Struct, frozen=True):
    """One run over a workload."""

    seconds: float
    requests: int
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    steps: int
    preemptions: int
    #: Where the host's seconds went; on the CPU the model runs within `launch`.
    host: HostTimes
    #: Share of allocated KV slots that held no token, over all steps.
    kv_waste: float

    @property
    def output_rate(self) -> float:
        """Output tokens a second."""
        return self.output_tokens / self.seconds

    @property
    def total_rate(self) -> float:
        """Prompt and output tokens a second."""
        return (self.prompt_tokens + self.output_tokens) / self.seconds


def warm_up(engine: Engine, temperature: float) -> None:
    """Compiles the kernels that the workloads use."""
    run(engine, fixed(engine.ready.vocab_size, 16, 256, 16, 99), temperature)


def run(engine: Engine, jobs: list[Job], temperature: float) -> Throughput:
    """Runs `jobs` on an empty prefix cache.

    Raises ValueError when a request is refused, RuntimeError when an answer has another length than asked for.
    """
    engine.reset_prefix_cache()
    before = engine.host_times
    outputs = cached = steps = allocated = used = 0
    preemptions = engine.scheduler.num_preemptions
    start = time.perf_counter()
    for i, job in enumerate(jobs):
        params = SequenceParams(max_tokens=job.max_tokens, temperature=temperature, seed=i)
        engine.add(AddSequence(i, job.prompt, [], params))
    while engine.has_work:
        output = engine.step()
        steps += 1
        if output.refused:
            raise ValueError(f"request {output.refused[0].seq_id} was refused: {output.refused[0].message}")
        outputs += sum(len(tokens) for _, tokens in output.tokens)
        cached += sum(count for _, count in output.started)
        allocated += output.load.allocated_slots
        used += output.load.used_slots
    seconds = time.perf_counter() - start
    if outputs != sum(job.max_tokens for job in jobs):
        raise RuntimeError(f"{outputs} tokens came back, not {sum(job.max_tokens for job in jobs)}")
    return Throughput(
        seconds=seconds,
        requests=len(jobs),
        prompt_tokens=sum(len(job.prompt) for job in jobs),
        output_tokens=outputs,
        cached_tokens=cached,
        steps=steps,
        preemptions=engine.scheduler.num_preemptions - preemptions,
        host=engine.host_times.since(before),
        kv_waste=1 - used / allocated if allocated else 0.0,
    )
