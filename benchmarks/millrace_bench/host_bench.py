"""What a step costs the host: the engine's own loop over real inputs, with a model that computes nothing."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Iterator

import msgspec
import numpy as np
import torch

from millrace_kernels import PlanShape, plan_decode
from millrace_worker.engine import garbage
from millrace_worker.engine.block_pool import BlockPool
from millrace_worker.engine.graphs import plan_fields
from millrace_worker.engine.inputs import StepInputs
from millrace_worker.engine.loop import StepLoop
from millrace_worker.engine.packed import Field, PackedInputs, packed_bytes
from millrace_worker.engine.runner import ModelRunner, SamplingBatch
from millrace_worker.engine.scheduler import Scheduler
from millrace_worker.engine.shared_runs import find_shared_runs
from millrace_worker.frames import AddSequence, Ready, SequenceParams, StepOutput, ToEngine, pack, unpack_to_engine

from .workloads import FIRST_ID, Job, chat

VOCABULARY = 151_936
#: An end of sequence that every request has and that is never sampled.
_STOP = VOCABULARY - 1
_BLOCK_SIZE = 16
_MAX_TOKENS = 8192
_MAX_MODEL_LEN = 8192
#: Of a layer of Llama's 8B in bfloat16.
_TOKEN_BYTES = 4096
#: Steps before the first that counts: those that fill the engine, and some more.
_WARM_STEPS = 40
_PHASES = ("receive", "schedule", "inputs", "launch", "complete", "report", "total")


class HostCost(msgspec.Struct, frozen=True):
    """Microseconds of a step, by phase: medians of the steps of one run."""

    workload: str
    sequences: int
    #: Reading a frame of new sequences, checking and queueing them.
    receive: float
    schedule: float
    inputs: float
    #: Attention's plan, and filling the buffers of model and sampler, without any kernel or copy to a device.
    launch: float
    complete: float
    #: Counts for the front, and its frame.
    report: float
    #: All of it, as median, mean, 99th percentile and largest.
    total: float
    mean: float
    p99: float
    largest: float


def run(workload: str, sequences: int, steps: int, repeats: int) -> HostCost:
    """`workload` is "decode", where all sequences only go on, or "churn", where chats end and others take their place.

    The quickest of the repeats counts: on a machine that does other things, too, it was disturbed least.
    """
    threads, thresholds = torch.get_num_threads(), gc.get_threshold()
    torch.set_num_threads(1)
    garbage.settle()
    try:
        runs = [_run(workload, sequences, steps) for _ in range(repeats)]
    finally:
        torch.set_num_threads(threads)
        gc.unfreeze()
        gc.set_threshold(*thresholds)
    quickest = min(runs, key=lambda run: run["total"])
    return HostCost(workload, sequences, **{name: round(value * 1e6, 1) for name, value in quickest.items()})


class _NothingRunner(ModelRunner):
    """Everything of a step but the model and the sampler: their buffers are filled in the host's memory."""

    def __init__(self, max_num_seqs: int) -> None:
        super().__init__(
            None,  # type: ignore[arg-type]
            torch.empty((1, 1, 2, 1, _BLOCK_SIZE, 1)),
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=_MAX_TOKENS,
            max_model_len=_MAX_MODEL_LEN,
        )
        self._ids = torch.randint(FIRST_ID, _STOP, (max_num_seqs,))
        self._shape = PlanShape(max_num_seqs, kv_heads=8, group=4, processors=132, shared=True)
        fields = _model_fields(_MAX_TOKENS, self._shape)
        self._buffer = torch.zeros(packed_bytes(fields), dtype=torch.uint8)
        self._packed: dict[int, PackedInputs] = {}

    def _logits(self, inputs: StepInputs) -> torch.Tensor:
        # As the graphs do: a size that is a multiple of 32, and one copy.
        size = min(_MAX_TOKENS, -(-len(inputs.input_ids) // 32) * 32)
        packed = self._packed.get(size)
        if packed is None:
            packed = self._packed[size] = PackedInputs(self._buffer, _model_fields(size, self._shape))
        n = inputs.num_decodes
        lines, lens = inputs.lines[:n], inputs.context_lens[:n]
        runs = find_shared_runs(self.tables.blocks, lines, lens, self.block_size, _TOKEN_BYTES)
        packed.send(
            input_ids=inputs.input_ids,
            positions=inputs.positions,
            slots=inputs.slots,
            context=inputs.context_lens,
            **plan_decode(lens, lines, self._shape, runs),
        )
        return self._ids

    def _sample(self, logits: torch.Tensor, batch: SamplingBatch) -> tuple[torch.Tensor, None]:
        return logits[: len(batch.rows)], None


def _model_fields(size: int, shape: PlanShape) -> dict[str, Field]:
    return {
        "input_ids": Field(np.int64, size),
        "positions": Field(np.int64, size),
        "slots": Field(np.int64, size, padding=-1),
        "context": Field(np.int32, size),
        **plan_fields(shape),
    }


def _run(workload: str, sequences: int, steps: int) -> dict[str, float]:
    """Seconds a step."""
    loop = _loop(sequences)
    arrivals = _arrivals(workload, sequences, steps)
    due = sequences
    spent: dict[str, list[float]] = {name: [] for name in _PHASES}
    for number in range(_WARM_STEPS + steps):
        frame = pack(ToEngine(add=[next(arrivals) for _ in range(due)]))[4:] if due else None
        before, began = loop.host_times, time.perf_counter()
        if frame is not None:
            for new in unpack_to_engine(frame).add:
                loop.add(new)
        stepping = time.perf_counter()
        output = loop.step()
        stepped = time.perf_counter()
        pack(output)
        ended = time.perf_counter()
        due = len(output.finished)
        if number < _WARM_STEPS:
            continue
        _check(workload, output, sequences)
        phases = loop.host_times.since(before)
        spent["receive"].append(stepping - began)
        spent["schedule"].append(phases.schedule)
        spent["inputs"].append(phases.inputs)
        spent["launch"].append(phases.launch + phases.wait)
        spent["complete"].append(phases.complete)
        spent["report"].append(phases.report + ended - stepped)
        spent["total"].append(ended - began)
    totals = sorted(spent["total"])
    return {
        **{name: statistics.median(seconds) for name, seconds in spent.items()},
        "mean": statistics.fmean(totals),
        "p99": totals[int(len(totals) * 0.99)],
        "largest": totals[-1],
    }


def _check(workload: str, output: StepOutput, sequences: int) -> None:
    """Raises RuntimeError when the step is not one that should be measured."""
    if workload == "decode" and (output.finished or output.sequences != sequences):
        raise RuntimeError(f"step {output.step} had {output.sequences} sequences, not {sequences} that only decode")
    if output.refused or output.load.preemptions:
        raise RuntimeError(f"step {output.step} refused or preempted sequences")


def _loop(sequences: int) -> StepLoop:
    """Two steps in flight, as on a device, and blocks for everything."""
    blocks = sequences * 200 + 1000
    ready = Ready(
        device="none",
        max_model_len=_MAX_MODEL_LEN,
        max_num_seqs=sequences,
        block_size=_BLOCK_SIZE,
        num_blocks=blocks,
        vocab_size=VOCABULARY,
    )
    scheduler = Scheduler(
        BlockPool(blocks),
        block_size=_BLOCK_SIZE,
        max_num_seqs=sequences,
        max_num_batched_tokens=_MAX_TOKENS,
    )
    return StepLoop(ready, scheduler, _NothingRunner(sequences), overlap=True)


def _arrivals(workload: str, sequences: int, steps: int) -> Iterator[AddSequence]:
    """New sequences. The first `sequences` of a churn are somewhere in their answers, as if it had gone on for long."""
    draw = random.Random(0)
    jobs = chat(VOCABULARY - 1)
    number = 0
    while True:
        job = jobs[number % len(jobs)]
        answer = _WARM_STEPS + steps + 10 if workload == "decode" else job.max_tokens
        if workload == "churn" and number < sequences:
            job, answer = _underway(draw, jobs)
        # Distinct from the first block on: nothing is found in the prefix cache, all of it is hashed and registered.
        prompt = [FIRST_ID + number, *job.prompt[1:]]
        params = SequenceParams(max_tokens=answer, temperature=0.7, seed=number, stop_token_ids=(_STOP,))
        yield AddSequence(number, prompt, [], params)
        number += 1


def _underway(draw: random.Random, jobs: list[Job]) -> tuple[Job, int]:
    """A job as one finds it in a steady state, the longer ones more often, and what is left of its answer."""
    (job,) = draw.choices(jobs, weights=[job.max_tokens for job in jobs])
    return job, draw.randint(1, job.max_tokens)
