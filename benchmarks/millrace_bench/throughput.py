"""Offline throughput of the engine alone: all requests at once, every answer runs to its length."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from millrace_worker.engine.host_times import HostTimes
from millrace_worker.frames import AddSequence, SequenceParams

from .workloads import Job

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
    #: Mean over the steps that launched something.
    sequences_per_step: float

    @property
    def host_ms_per_step(self) -> float:
        """Milliseconds of a step in which the host did not wait for the device, as a mean over all steps."""
        return (self.seconds - self.host.wait) / self.steps * 1000

    def figures(self) -> dict[str, float]:
        """What is known of a run beyond its time and its tokens."""
        return {
            "cached_tokens": self.cached_tokens,
            "steps": self.steps,
            "preemptions": self.preemptions,
            "wait_seconds": self.host.wait,
            "kv_waste": self.kv_waste,
            "sequences_per_step": self.sequences_per_step,
            "host_ms_per_step": self.host_ms_per_step,
            **{
                f"{phase}_us_per_step": seconds / self.steps * 1e6
                for phase, seconds in msgspec.structs.asdict(self.host).items()
            },
        }


def run(engine: Engine, jobs: list[Job], temperature: float) -> Throughput:
    """Runs `jobs` on an empty prefix cache.

    Raises ValueError when a request is refused, RuntimeError when an answer has another length than asked for.
    """
    engine.reset_prefix_cache()
    before = engine.host_times
    outputs = cached = steps = allocated = used = launched = sequences = 0
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
        cached += sum(started.cached for started in output.started)
        allocated += output.load.allocated_slots
        used += output.load.used_slots
        launched += output.sequences > 0
        sequences += output.sequences
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
        sequences_per_step=sequences / launched if launched else 0.0,
    )
