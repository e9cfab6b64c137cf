"""CUDA graphs of steps that hold prefills beside decodes, by their number of tokens."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import structlog
import torch

from millrace_worker.models.batch import ForwardBatch
from millrace_worker.models.decoder import Decoder

from .graphs import fill, pinned
from .inputs import StepInputs
from .last_tokens import LastTokens

log = structlog.get_logger()

#: Prefills that one graph has room for.
PREFILLS = 32
#: Decodes that the graphs for few have room for. Attention splits few rows' contexts over the whole device.
_FEW = 64
#: Longer steps keep the device busy for longer than the host takes to launch their kernels.
_MAX_TOKENS = 2048


def mixed_sizes(max_tokens: int) -> list[int]:
    """Numbers of tokens to capture: at most an eighth, from 256 on, is padding."""
    limit = min(max_tokens, _MAX_TOKENS)
    sizes = [*range(32, 512, 32), *range(512, 1024, 64), *range(1024, _MAX_TOKENS + 1, 128)]
    return [*(size for size in sizes if size < limit), limit]


@dataclass(frozen=True, slots=True)
class _Sequences:
    """Block tables and lengths of `rows` decodes and PREFILLS prefills, at fixed places on the device."""

    rows: int
    tables: torch.Tensor  # [rows + PREFILLS, max_blocks] int32
    context: torch.Tensor  # [rows + PREFILLS] int32
    bounds: torch.Tensor  # [PREFILLS + 1] int32

    @classmethod
    def make(cls, rows: int, max_blocks: int, device: torch.device) -> _Sequences:
        return cls(
            rows,
            torch.zeros((rows + PREFILLS, max_blocks), dtype=torch.int32, device=device),
            torch.zeros(rows + PREFILLS, dtype=torch.int32, device=device),
            torch.zeros(PREFILLS + 1, dtype=torch.int32, device=device),
        )

    def put(self, inputs: StepInputs) -> None:
        decodes = inputs.num_decodes
        prefills = len(inputs.counts) - decodes
        context = np.zeros(self.rows + prefills, dtype=np.int32)
        context[:decodes], context[self.rows :] = inputs.context_lens[:decodes], inputs.context_lens[decodes:]
        fill(self.context, context, 0)
        fill(self.bounds, inputs.prefill_bounds, int(inputs.ends[-1]))
        tables, width = pinned(inputs.block_tables), inputs.block_tables.shape[1]
        self.tables[:decodes, :width].copy_(tables[:decodes], non_blocking=True)
        self.tables[self.rows : self.rows + prefills, :width].copy_(tables[decodes:], non_blocking=True)


class MixedGraphs:
    """The model's forward pass for up to `mixed_sizes` tokens of any decodes and up to PREFILLS prefills.

    Shapes alone make a graph: a step has room for more decodes, prefills, tokens and logits than it uses. Decodes that
    are not there have no context; their rows may be a prefill's, whose attention is computed after theirs.
    """

    def __init__(
        self,
        model: Decoder,
        kv_cache: torch.Tensor,
        last_tokens: LastTokens,
        *,
        max_num_seqs: int,
        max_tokens: int,
        max_blocks: int,
    ) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._last_tokens = last_tokens
        self._max_num_seqs = max_num_seqs
        self._sizes = mixed_sizes(max_tokens)
        device, longest = kv_cache.device, self._sizes[-1]
        self._input_ids = torch.zeros(longest, dtype=torch.int64, device=device)
        self._positions = torch.zeros_like(self._input_ids)
        self._slots = torch.full_like(self._input_ids, -1)
        self._logits_rows = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)
        self._sequences = {
            rows: _Sequences.make(rows, max_blocks, device) for size in self._sizes for rows in self._rows(size)
        }
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}

    @torch.inference_mode()
    def capture(self, pool: Any) -> None:
        """Captures all sizes into `pool`, the largest first, so that the smaller ones fit into its memory."""
        start, before = time.perf_counter(), torch.cuda.mem_get_info(self._kv_cache.device)[0]
        for size in reversed(self._sizes):
            for rows in self._rows(size):
                batch = self._batch(size, self._sequences[rows])
                # Whatever is compiled or allocated on first use must be there before the capture.
                self._forward(batch)
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool):
                    logits = self._forward(batch)
                self._graphs[size, rows] = (graph, logits)
        taken = before - torch.cuda.mem_get_info(self._kv_cache.device)[0]
        log.info(
            "mixed graphs captured",
            graphs=len(self._graphs),
            seconds=round(time.perf_counter() - start, 1),
            mebibytes=taken // 2**20,
        )

    def fits(self, inputs: StepInputs) -> bool:
        return len(inputs.input_ids) <= self._sizes[-1] and len(inputs.counts) - inputs.num_decodes <= PREFILLS

    def forward(self, inputs: StepInputs) -> torch.Tensor:
        """Logits [n, vocab_size] of the n sequences that sample; valid until the next call."""
        tokens = len(inputs.input_ids)
        size = next(size for size in self._sizes if size >= tokens)
        rows = next(rows for rows in self._rows(size) if rows >= inputs.num_decodes)
        fill(self._input_ids[:size], inputs.input_ids, 0)
        fill(self._positions[:size], inputs.positions, 0)
        fill(self._slots[:size], inputs.slots, -1)
        wanted = inputs.ends[inputs.samples] - 1
        fill(self._logits_rows, wanted, 0)
        self._sequences[rows].put(inputs)
        graph, logits = self._graphs[size, rows]
        graph.replay()
        return logits[: len(wanted)]

    def _rows(self, size: int) -> list[int]:
        """For how many decodes there are graphs of `size` tokens."""
        return sorted({min(_FEW, self._max_num_seqs, size), min(self._max_num_seqs, size)})

    def _forward(self, batch: ForwardBatch) -> torch.Tensor:
        known = replace(batch, input_ids=self._last_tokens.resolve(batch.input_ids))
        return self._model.forward(known, self._kv_cache)

    def _batch(self, size: int, sequences: _Sequences) -> ForwardBatch:
        return ForwardBatch(
            input_ids=self._input_ids[:size],
            positions=self._positions[:size],
            slot_mapping=self._slots[:size],
            num_decodes=sequences.rows,
            block_tables=sequences.tables,
            context_lens=sequences.context,
            cu_seqlens_q=sequences.bounds,
            max_query_len=size,
            logits_rows=self._logits_rows[: min(size, sequences.rows + PREFILLS)],
        )
