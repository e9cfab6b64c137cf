"""Turns a Step into tensors, launches the model, hands out the sampled ids. Knows rows and blocks, no scheduling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from millrace_kernels import sample
from millrace_worker.models.batch import ForwardBatch
from millrace_worker.models.decoder import Decoder

from .graphs import DecodeGraphs
from .inputs import SequenceTables, StepInputs
from .last_tokens import LastTokens
from .mixed_graphs import MixedGraphs
from .packed import Field, PackedInputs, packed_bytes
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
    #: (logits row, token ids that must not be sampled there)
    banned: list[tuple[int, tuple[int, ...]]]


class Launched:
    """A step on its way."""

    def __init__(self, step: Step, sampled: torch.Tensor | None) -> None:
        self.step = step
        self._sampled = sampled
        self._copied: torch.cuda.Event | None = None
        if sampled is not None and sampled.is_cuda:
            self._sampled = sampled.to("cpu", non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def wait(self) -> list[int]:
        """One token id for each part that samples, in the order of `step.sampling`."""
        if self._copied is not None:
            self._copied.synchronize()
        return [] if self._sampled is None else self._sampled.tolist()


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
    ) -> None:
        self.model = model
        self.kv_cache = kv_cache
        self.block_size = kv_cache.shape[4]
        self.device = kv_cache.device
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_blocks = -(-max_model_len // self.block_size)
        self.tables = SequenceTables(max_num_seqs, self.max_blocks)
        self.last_tokens = LastTokens(max_num_seqs, self.device)
        self._sampling_buffer = torch.zeros(
            packed_bytes(_sampling_fields(max_num_seqs)), dtype=torch.uint8, device=self.device
        )
        #: By number of rows.
        self._sampling: dict[int, PackedInputs] = {}
        #: Replays of decode steps, and of short steps with prefills, once `capture` was called.
        self.graphs: DecodeGraphs | None = None
        self.mixed_graphs: MixedGraphs | None = None

    def capture(self) -> None:
        """Captures decode steps and short mixed ones into CUDA graphs, which share their memory."""
        pool = torch.cuda.graph_pool_handle()
        sizes = {"max_num_seqs": self.max_num_seqs, "max_blocks": self.max_blocks}
        mixed = MixedGraphs(
            self.model, self.kv_cache, self.last_tokens, max_tokens=self.max_num_batched_tokens, **sizes
        )
        mixed.capture(pool)
        graphs = DecodeGraphs(self.model, self.kv_cache, self.last_tokens, **sizes)
        graphs.capture(pool)
        self.graphs, self.mixed_graphs = graphs, mixed

    def warm_up(self, vocab_size: int) -> None:
        """Compiles the sampler, which no trial step has run, before the first job waits for it."""
        logits = torch.zeros((1, vocab_size), dtype=self.kv_cache.dtype, device=self.device)
        floats = torch.ones(1, device=self.device)
        ints = torch.zeros(1, dtype=torch.int64, device=self.device)
        for any_filter in (False, True):
            sample(logits, floats, ints.int(), floats, floats, ints, ints, any_filter=any_filter)

    def inputs(self, step: Step) -> StepInputs:
        """The arrays of a step, after the tables of its sequences were brought up to date."""
        for seq in step.grown:
            self.tables.update(seq)
        return StepInputs.of(step, self.tables, self.block_size)

    @torch.inference_mode()
    def launch(self, step: Step, inputs: StepInputs) -> Launched:
        """Starts a step, behind those that were launched before; nothing here waits for the device."""
        logits = self._logits(inputs)
        if not step.sampling:
            return Launched(step, None)
        batch = self._sampling_batch(step)
        sampled = self._sample(logits, batch)
        self.last_tokens.put(batch.rows, sampled)
        return Launched(step, sampled)

    def _logits(self, inputs: StepInputs) -> torch.Tensor:
        if self.graphs is not None and inputs.is_decode:
            return self.graphs.forward(
                inputs.input_ids, inputs.positions, inputs.slots, inputs.block_tables, inputs.context_lens
            )
        if self.mixed_graphs is not None and self.mixed_graphs.fits(inputs):
            return self.mixed_graphs.forward(inputs)
        batch = ForwardBatch(
            input_ids=self.last_tokens.resolve(self._tensor(inputs.input_ids)),
            positions=self._tensor(inputs.positions),
            slot_mapping=self._tensor(inputs.slots),
            num_decodes=inputs.num_decodes,
            block_tables=self._tensor(inputs.block_tables),
            context_lens=self._tensor(inputs.context_lens),
            cu_seqlens_q=self._tensor(inputs.prefill_bounds),
            max_query_len=int(inputs.counts[inputs.num_decodes :].max(initial=0)),
            logits_rows=self._tensor(inputs.ends[inputs.samples] - 1),
        )
        return self.model.forward(batch, self.kv_cache)

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
            banned=banned,
        )

    def _sample(self, logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        if batch.banned:
            rows = self._tensor(np.array([row for row, ids in batch.banned for _ in ids]))
            ids = self._tensor(np.array([i for _, ids in batch.banned for i in ids]))
            logits[rows, ids] = float("-inf")
        return sample(
            logits,
            batch.temperature,
            batch.top_k,
            batch.top_p,
            batch.min_p,
            batch.seeds,
            batch.positions,
            any_filter=batch.any_filter,
        )

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
