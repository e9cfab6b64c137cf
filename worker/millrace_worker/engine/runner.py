"""Turns a Step into tensors, launches the model, hands out the sampled ids. Knows rows and blocks, no scheduling."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from millrace_kernels import DecodePlan, PlanShape, SharedReads, SharedRun, sample
from millrace_worker.frames import Likely
from millrace_worker.models.batch import ForwardBatch
from millrace_worker.models.decoder import Decoder

from .device_tables import DeviceTables
from .graphs import DecodeGraphs
from .inputs import SequenceTables, StepInputs
from .last_tokens import LastTokens
from .logprobs import StepLogprobs, Wanted, warm_up_logprobs
from .mixed_graphs import PREFILLS, MixedGraphs
from .packed import Field, PackedInputs, packed_bytes
from .penalties import Penalties, warm_up_penalties
from .planner import Planner
from .sequence import Sequence
from .shared_runs import find_shared_runs
from .step import Step


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """Settings of the rows that sample, in the order of the logits."""

    temperature: torch.Tensor  # [R] float32
    top_k: torch.Tensor  # [R] int32
    top_p: torch.Tensor  # [R] float32
    min_p: torch.Tensor  # [R] float32
    seeds: torch.Tensor  # [R] int64
    positions: torch.Tensor  # [R] int64
    rows: torch.Tensor  # [R] int64, of the sequences
    any_filter: bool
    #: By row of the logits, the sequences that are penalised; empty when none is.
    penalised: dict[int, Sequence]
    #: None: no sequence asks for log-probabilities.
    logprobs: Wanted | None
    #: (logits row, token ids that must not be sampled there)
    banned: list[tuple[int, tuple[int, ...]]]


class Launched:
    """A step on its way."""

    def __init__(
        self, step: Step, shared: SharedReads, sampled: torch.Tensor | None = None, logprobs: StepLogprobs | None = None
    ) -> None:
        self.step = step
        #: What its attention reads for several sequences at once.
        self.shared = shared
        self._sampled = sampled
        self._logprobs = logprobs
        self._copied: torch.cuda.Event | None = None
        if sampled is not None and sampled.is_cuda:
            self._sampled = sampled.to("cpu", non_blocking=True)
            self._logprobs = None if logprobs is None else logprobs.to_host()
            self._copied = torch.cuda.Event()
            self._copied.record()

    def wait(self) -> list[int]:
        """One token id for each part that samples, in the order of `step.sampling`."""
        if self._copied is not None:
            self._copied.synchronize()
        return [] if self._sampled is None else self._sampled.tolist()

    def logprobs(self) -> dict[int, Likely]:
        """Of the sequences that ask, by their ids; after `wait`."""
        return {} if self._logprobs is None else self._logprobs.read()


class ModelRunner:
    """Runs steps on one device over one KV cache."""

    def __init__(
        self,
        model: Decoder,
        kv_cache: torch.Tensor,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        share_runs: bool = True,
    ) -> None:
        """With `share_runs`, decode attention reads blocks that sequences share once for all of them."""
        self.model = model
        self.kv_cache = kv_cache
        self.block_size = kv_cache.shape[4]
        self.device = kv_cache.device
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.tables = SequenceTables(max_num_seqs, -(-max_model_len // self.block_size))
        self.device_tables = DeviceTables(self.tables.blocks, self.device)
        self.last_tokens = LastTokens(max_num_seqs, self.device)
        self._sampling_buffer = torch.zeros(
            packed_bytes(_sampling_fields(max_num_seqs)), dtype=torch.uint8, device=self.device
        )
        self.penalties = Penalties(max_num_seqs, self.device)
        #: By number of rows.
        self._sampling: dict[int, PackedInputs] = {}
        #: Of attention's plans; None on a CPU, where attention needs none.
        self._plan_shape: PlanShape | None = None
        if self.device.type == "cuda":
            config = model.config
            self._plan_shape = PlanShape(
                max_num_seqs,
                config.num_kv_heads,
                config.num_heads // config.num_kv_heads,
                torch.cuda.get_device_properties(self.device).multi_processor_count,
                shared=share_runs,
            )
        self.planner = Planner()
        #: Looked at in every step; False: as if no sequences shared blocks. It cannot turn on what was built without.
        self.share_runs = share_runs
        #: Replays of decode steps, and of short steps with prefills, once `capture` was called.
        self.graphs: DecodeGraphs | None = None
        self.mixed_graphs: MixedGraphs | None = None

    @property
    def can_share_runs(self) -> bool:
        """Whether `share_runs` makes a difference: not on a CPU, nor with too many query heads of a KV head."""
        return self._plan_shape is not None and self._plan_shape.shared

    def capture(self) -> None:
        """Captures decode steps and short mixed ones into CUDA graphs, which share their memory and their logits."""
        assert self._plan_shape is not None
        pool = torch.cuda.graph_pool_handle()
        most = min(self.max_num_seqs + PREFILLS, max(self.max_num_seqs, self.max_num_batched_tokens))
        logits = torch.zeros((most, self.model.config.vocab_size), dtype=self.model.dtype, device=self.device)
        tables = self.device_tables.blocks
        parts = (self.model, self.kv_cache, self.last_tokens, tables, logits, self._plan_shape, self.planner)
        mixed = MixedGraphs(*parts, max_tokens=self.max_num_batched_tokens)
        mixed.capture(pool)
        graphs = DecodeGraphs(*parts)
        graphs.capture(pool)
        self.graphs, self.mixed_graphs = graphs, mixed

    def warm_up(self, vocab_size: int) -> None:
        """Compiles the sampler, which no trial step has run, before the first job waits for it."""
        logits = torch.zeros((1, vocab_size), dtype=self.kv_cache.dtype, device=self.device)
        floats = torch.ones(1, device=self.device)
        ints = torch.zeros(1, dtype=torch.int64, device=self.device)
        for any_filter in (False, True):
            sample(logits, floats, ints.int(), floats, floats, ints, ints, any_filter=any_filter)
        warm_up_penalties(logits)
        warm_up_logprobs(logits)

    def inputs(self, step: Step) -> StepInputs:
        """The arrays of a step, after the tables of its sequences were brought up to date."""
        for seq in step.grown:
            self.tables.update(seq)
        return StepInputs.of(step, self.tables, self.block_size)

    @torch.inference_mode()
    def launch(self, step: Step, inputs: StepInputs) -> Launched:
        """Starts a step, behind those that were launched before; nothing here waits for the device."""
        changes, self.tables.changes = self.tables.changes, []
        self.device_tables.send(changes)
        logits = self._logits(inputs)
        shared = self.planner.take_reads()
        if not step.sampling:
            return Launched(step, shared)
        batch = self._sampling_batch(step)
        sampled, logprobs = self._sample(logits, batch)
        self.last_tokens.put(batch.rows, sampled)
        return Launched(step, shared, sampled, logprobs)

    def _logits(self, inputs: StepInputs) -> torch.Tensor:
        runs = self._shared_runs(inputs)
        if self.graphs is not None and inputs.is_decode:
            return self.graphs.forward(inputs, runs)
        if self.mixed_graphs is not None and self.mixed_graphs.fits(inputs):
            return self.mixed_graphs.forward(inputs, runs)
        batch = ForwardBatch(
            input_ids=self._tensor(inputs.input_ids),
            newest=self.last_tokens.ids,
            positions=self._tensor(inputs.positions),
            slot_mapping=self._tensor(inputs.slots),
            num_decodes=inputs.num_decodes,
            block_tables=self.device_tables.blocks,
            lines=self._tensor(inputs.lines),
            context_lens=self._tensor(inputs.context_lens),
            cu_seqlens_q=self._tensor(inputs.prefill_bounds),
            max_query_len=int(inputs.counts[inputs.num_decodes :].max(initial=0)),
            logits_rows=self._tensor(inputs.ends[inputs.samples] - 1),
            decode_plan=self._decode_plan(inputs, runs),
        )
        return self.model.forward(batch, self.kv_cache)

    def _shared_runs(self, inputs: StepInputs) -> list[SharedRun]:
        n = inputs.num_decodes
        if not (self.share_runs and self.can_share_runs):
            return []
        token_bytes = self.kv_cache.stride(1) // self.block_size * self.kv_cache.element_size()
        return find_shared_runs(
            self.tables.blocks, inputs.lines[:n], inputs.context_lens[:n], self.block_size, token_bytes
        )

    def _decode_plan(self, inputs: StepInputs, runs: list[SharedRun]) -> DecodePlan | None:
        n = inputs.num_decodes
        if self._plan_shape is None or n == 0:
            return None
        shape = replace(self._plan_shape, rows=n, shared=bool(runs))
        plan = self.planner.plan(inputs.context_lens[:n], inputs.lines[:n], shape, runs)
        return DecodePlan.of(shape, {name: self._tensor(array) for name, array in plan.items()})

    def _sampling_batch(self, step: Step) -> SamplingBatch:
        rows, positions = step.rows[step.samples], (step.starts + step.counts)[step.samples]
        tables = self.tables
        banned = [
            (index, step.sampling[index].params.stop_token_ids)
            for index in np.flatnonzero(positions < tables.may_stop[rows]).tolist()
        ]
        packed = self._sampling.get(len(rows))
        if packed is None:
            packed = PackedInputs(self._sampling_buffer, _sampling_fields(len(rows)))
            self._sampling[len(rows)] = packed
        packed.send(
            temperature=tables.temperature[rows],
            top_k=tables.top_k[rows],
            top_p=tables.top_p[rows],
            min_p=tables.min_p[rows],
            seeds=tables.seed[rows],
            positions=positions,
            rows=rows,
        )
        return SamplingBatch(
            **packed.tensors,
            any_filter=bool(tables.filtered[rows].any()),
            penalised={int(index): step.sampling[index] for index in np.flatnonzero(tables.penalised[rows])},
            logprobs=self._wanted(step, np.flatnonzero(tables.logprobs[rows])),
            banned=banned,
        )

    def _wanted(self, step: Step, rows: np.ndarray) -> Wanted | None:
        if not len(rows):
            return None
        seqs = [step.sampling[row] for row in rows]
        return Wanted([seq.seq_id for seq in seqs], [seq.params.logprobs or 0 for seq in seqs], self._tensor(rows))

    def _sample(self, logits: torch.Tensor, batch: SamplingBatch) -> tuple[torch.Tensor, StepLogprobs | None]:
        if batch.banned:
            rows = self._tensor(np.array([row for row, ids in batch.banned for _ in ids]))
            ids = self._tensor(np.array([i for _, ids in batch.banned for i in ids]))
            allowed = logits[rows, ids]
            logits[rows, ids] = float("-inf")
        penalised = self.penalties.apply(logits, batch.penalised) if batch.penalised else None
        sampled = sample(
            logits,
            batch.temperature,
            batch.top_k,
            batch.top_p,
            batch.min_p,
            batch.seeds,
            batch.positions,
            any_filter=batch.any_filter,
            penalised=None if penalised is None else penalised.logits,
            penalised_row=None if penalised is None else penalised.row,
        )
        if penalised is not None:
            self.penalties.count(penalised, sampled)
        if batch.logprobs is None:
            return sampled, None
        if batch.banned:
            logits[rows, ids] = allowed
        return sampled, StepLogprobs.of(logits, sampled, batch.logprobs)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)


def _sampling_fields(rows: int) -> dict[str, Field]:
    """The tensors of a SamplingBatch."""
    return {
        "temperature": Field(np.float32, rows),
        "top_k": Field(np.int32, rows),
        "top_p": Field(np.float32, rows),
        "min_p": Field(np.float32, rows),
        "seeds": Field(np.int64, rows),
        "positions": Field(np.int64, rows),
        "rows": Field(np.int64, rows),
    }
