"""CUDA graphs of steps that hold prefills beside decodes, by their number of tokens."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import structlog
import torch

from millrace_kernels import DecodePlan, PlanShape, SharedRun, prefill_arrivals
from millrace_worker.models.batch import ForwardBatch
from millrace_worker.models.decoder import Decoder

from .graphs import plan_fields
from .inputs import StepInputs
from .last_tokens import LastTokens
from .packed import Field, PackedInputs, packed_bytes
from .planner import Planner

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


class MixedGraphs:
    """The model's forward pass for up to `mixed_sizes` tokens of any decodes and up to PREFILLS prefills.

    Shapes alone make a graph: a step has room for more decodes, prefills, tokens and logits than it uses. Decodes that
    are not there are in no plan; their rows may be a prefill's, whose attention is computed after theirs. All graphs
    put their logits into one tensor.
    """

    def __init__(
        self,
        model: Decoder,
        kv_cache: torch.Tensor,
        last_tokens: LastTokens,
        block_tables: torch.Tensor,
        logits: torch.Tensor,
        shape: PlanShape,
        planner: Planner,
        *,
        max_tokens: int,
    ) -> None:
        """`logits` is [max_num_seqs + PREFILLS, vocab_size], `shape` the plans' with max_num_seqs rows."""
        self._model = model
        self._kv_cache = kv_cache
        self._last_tokens = last_tokens
        self._tables = block_tables
        self._logits = logits
        self._planner = planner
        self._max_num_seqs = shape.rows
        self._sizes = mixed_sizes(max_tokens)
        #: By (tokens, decodes).
        self._shapes = {(size, rows): replace(shape, rows=rows) for size in self._sizes for rows in self._rows(size)}
        fields = {(size, rows): _fields(size, plan_shape) for (size, rows), plan_shape in self._shapes.items()}
        buffer = torch.zeros(max(map(packed_bytes, fields.values())), dtype=torch.uint8, device=kv_cache.device)
        self._inputs = {key: PackedInputs(buffer, wanted) for key, wanted in fields.items()}
        self._arrivals = torch.zeros(shape.rows * shape.kv_heads, dtype=torch.int32, device=kv_cache.device)
        self._prefill_arrivals = prefill_arrivals(kv_cache.device)
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}

    @torch.inference_mode()
    def capture(self, pool: Any) -> None:
        """Captures all sizes into `pool`, the largest first, so that the smaller ones fit into its memory."""
        start, before = time.perf_counter(), torch.cuda.mem_get_info(self._kv_cache.device)[0]
        none = np.zeros(0, dtype=np.int64)
        for size in reversed(self._sizes):
            for rows in self._rows(size):
                inputs = self._inputs[size, rows]
                inputs.send(**dict.fromkeys(inputs.tensors, none))
                batch = self._batch(size, rows)
                # Whatever is compiled or allocated on first use must be there before the capture.
                self._forward(batch)
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool):
                    self._forward(batch)
                self._graphs[size, rows] = graph
        taken = before - torch.cuda.mem_get_info(self._kv_cache.device)[0]
        log.info(
            "mixed graphs captured",
            graphs=len(self._graphs),
            seconds=round(time.perf_counter() - start, 1),
            mebibytes=taken // 2**20,
        )

    def fits(self, inputs: StepInputs) -> bool:
        return len(inputs.input_ids) <= self._sizes[-1] and len(inputs.counts) - inputs.num_decodes <= PREFILLS

    def forward(self, inputs: StepInputs, runs: list[SharedRun]) -> torch.Tensor:
        """Logits [n, vocab_size] of the n sequences that sample; valid until the next call."""
        tokens = len(inputs.input_ids)
        size = next(size for size in self._sizes if size >= tokens)
        rows = next(rows for rows in self._rows(size) if rows >= inputs.num_decodes)
        decodes, prefills = inputs.num_decodes, len(inputs.counts) - inputs.num_decodes
        bounds = np.full(PREFILLS + 1, tokens, dtype=np.int32)
        bounds[: prefills + 1] = inputs.prefill_bounds
        wanted = inputs.ends[inputs.samples] - 1
        shape = self._shapes[size, rows]
        plan = self._planner.plan(inputs.context_lens[:decodes], inputs.lines[:decodes], shape, runs)
        self._inputs[size, rows].send(
            input_ids=inputs.input_ids,
            positions=inputs.positions,
            slots=inputs.slots,
            logits_rows=wanted,
            context=_apart(inputs.context_lens, decodes, rows),
            lines=_apart(inputs.lines, decodes, rows),
            bounds=bounds,
            **plan,
        )
        self._graphs[size, rows].replay()
        return self._logits[: len(wanted)]

    def _rows(self, size: int) -> list[int]:
        """For how many decodes there are graphs of `size` tokens."""
        return sorted({min(_FEW, self._max_num_seqs, size), min(self._max_num_seqs, size)})

    def _forward(self, batch: ForwardBatch) -> None:
        self._model.forward(batch, self._kv_cache, logits=self._logits[: len(batch.logits_rows)])

    def _batch(self, size: int, rows: int) -> ForwardBatch:
        inputs = self._inputs[size, rows].tensors
        return ForwardBatch(
            input_ids=inputs["input_ids"],
            newest=self._last_tokens.ids,
            positions=inputs["positions"],
            slot_mapping=inputs["slots"],
            num_decodes=rows,
            block_tables=self._tables,
            lines=inputs["lines"],
            context_lens=inputs["context"],
            cu_seqlens_q=inputs["bounds"],
            max_query_len=size,
            logits_rows=inputs["logits_rows"],
            decode_plan=DecodePlan.of(self._shapes[size, rows], inputs, self._arrivals),
            prefill_arrivals=self._prefill_arrivals,
        )


def _apart(values: np.ndarray, decodes: int, rows: int) -> np.ndarray:
    """Of each sequence, with room for `rows` decodes before the prefills."""
    moved = np.zeros(rows + len(values) - decodes, dtype=values.dtype)
    moved[:decodes], moved[rows:] = values[:decodes], values[decodes:]
    return moved


def _fields(size: int, shape: PlanShape) -> dict[str, Field]:
    return {
        "input_ids": Field(np.int64, size),
        "positions": Field(np.int64, size),
        "slots": Field(np.int64, size, padding=-1),
        "logits_rows": Field(np.int64, min(size, shape.rows + PREFILLS)),
        "context": Field(np.int32, shape.rows + PREFILLS),
        "lines": Field(np.int32, shape.rows + PREFILLS),
        "bounds": Field(np.int32, PREFILLS + 1),
        **plan_fields(shape),
    }
