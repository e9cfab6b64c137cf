"""Turns a Step into tensors, runs the model, and returns the sampled ids. Knows rows and blocks, no scheduling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from millrace_kernels import sample
from millrace_worker.models.batch import ForwardBatch
from millrace_worker.models.decoder import Decoder

from .sequence import Sequence
from .step import Scheduled, Step


class SequenceTables:
    """Block tables and sampling settings on the host, one stable row a running sequence, written by differences."""

    def __init__(self, max_num_seqs: int, max_blocks: int) -> None:
        self.blocks = np.zeros((max_num_seqs, max_blocks), dtype=np.int32)
        self.temperature = np.zeros(max_num_seqs, dtype=np.float32)
        self.top_k = np.zeros(max_num_seqs, dtype=np.int32)
        self.top_p = np.ones(max_num_seqs, dtype=np.float32)
        self.min_p = np.zeros(max_num_seqs, dtype=np.float32)
        self.seed = np.zeros(max_num_seqs, dtype=np.int64)
        #: The list object last written to each row: a sequence that starts, or starts again, has a new one.
        self._written: list[list[int] | None] = [None] * max_num_seqs
        self._lengths = [0] * max_num_seqs

    def update(self, seq: Sequence) -> None:
        row, table = seq.row, seq.block_table
        if self._written[row] is not table:
            self._written[row], self._lengths[row] = table, 0
            params = seq.params
            self.temperature[row] = params.temperature
            self.top_k[row] = params.top_k
            self.top_p[row] = params.top_p
            self.min_p[row] = params.min_p
            self.seed[row] = params.seed
        written, length = self._lengths[row], len(table)
        if written < length:
            self.blocks[row, written:length] = table[written:]
            self._lengths[row] = length


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """Settings of the rows that sample, in the order of the logits."""

    temperature: torch.Tensor  # [R] float32
    top_k: torch.Tensor  # [R] int32
    top_p: torch.Tensor  # [R] float32
    min_p: torch.Tensor  # [R] float32
    seeds: torch.Tensor  # [R] int64
    positions: torch.Tensor  # [R] int64
    any_filter: bool
    #: (logits row, token ids that must not be sampled there)
    banned: list[tuple[int, tuple[int, ...]]]


class ModelRunner:
    """Runs steps on one device over one KV cache."""

    def __init__(self, model: Decoder, kv_cache: torch.Tensor, *, max_num_seqs: int, max_model_len: int) -> None:
        self.model = model
        self.kv_cache = kv_cache
        self.block_size = kv_cache.shape[4]
        self.device = kv_cache.device
        self.tables = SequenceTables(max_num_seqs, -(-max_model_len // self.block_size))

    @torch.inference_mode()
    def run(self, step: Step) -> list[int]:
        """One token id for each part that samples, in the order of `step.scheduled`."""
        for part in step.scheduled:
            self.tables.update(part.seq)
        batch = self._forward_batch(step)
        logits = self.model.forward(batch, self.kv_cache)
        sampling_parts = [part for part in step.scheduled if part.samples]
        if not sampling_parts:
            return []
        return self._sample(logits, self._sampling_batch(sampling_parts)).tolist()

    def _forward_batch(self, step: Step) -> ForwardBatch:
        parts = step.scheduled
        rows = np.fromiter((p.seq.row for p in parts), np.int64, len(parts))
        starts = np.fromiter((p.start for p in parts), np.int64, len(parts))
        counts = np.fromiter((p.count for p in parts), np.int64, len(parts))
        ends = np.cumsum(counts)
        # Position of each token: its sequence's start plus its distance from the sequence's first token in the step.
        positions = np.arange(step.num_tokens) - np.repeat(ends - counts - starts, counts)
        token_rows = np.repeat(rows, counts)
        blocks = self.tables.blocks[token_rows, positions // self.block_size].astype(np.int64)
        slots = blocks * self.block_size + positions % self.block_size
        context = starts + counts
        width = -(-int(context.max()) // self.block_size)
        prefill_ends = ends[step.num_decodes :] - step.num_decodes
        samples = np.fromiter((p.samples for p in parts), np.bool_, len(parts))
        return ForwardBatch(
            input_ids=self._tensor(_token_ids(parts, step)),
            positions=self._tensor(positions),
            slot_mapping=self._tensor(slots),
            num_decodes=step.num_decodes,
            block_tables=self._tensor(self.tables.blocks[rows, :width]),
            context_lens=self._tensor(context.astype(np.int32)),
            cu_seqlens_q=self._tensor(np.concatenate(([0], prefill_ends)).astype(np.int32)),
            max_query_len=int(counts[step.num_decodes :].max(initial=0)),
            logits_rows=self._tensor(ends[samples] - 1),
        )

    def _sampling_batch(self, parts: list[Scheduled]) -> SamplingBatch:
        rows = np.fromiter((p.seq.row for p in parts), np.int64, len(parts))
        tables = self.tables
        top_k, top_p, min_p = tables.top_k[rows], tables.top_p[rows], tables.min_p[rows]
        banned = [
            (index, part.seq.params.stop_token_ids)
            for index, part in enumerate(parts)
            if part.seq.params.stop_token_ids and part.seq.num_generated < part.seq.params.min_tokens
        ]
        return SamplingBatch(
            temperature=self._tensor(tables.temperature[rows]),
            top_k=self._tensor(top_k),
            top_p=self._tensor(top_p),
            min_p=self._tensor(min_p),
            seeds=self._tensor(tables.seed[rows]),
            positions=self._tensor(np.fromiter((p.start + p.count for p in parts), np.int64, len(parts))),
            any_filter=bool((top_k > 0).any() or (top_p < 1).any() or (min_p > 0).any()),
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


def _token_ids(parts: tuple[Scheduled, ...], step: Step) -> np.ndarray:
    ids = np.empty(step.num_tokens, dtype=np.int64)
    ids[: step.num_decodes] = [p.seq.tokens[p.start] for p in parts[: step.num_decodes]]
    offset = step.num_decodes
    for part in parts[step.num_decodes :]:
        ids[offset : offset + part.count] = part.seq.tokens[part.start : part.start + part.count]
        offset += part.count
    return ids
