"""CUDA graphs of decode steps: one launch where a small model would wait for the host at each of its kernels."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import structlog
import torch

from millrace_kernels import DecodePlan, PlanShape, SharedRun
from millrace_worker.models.batch import ForwardBatch
from millrace_worker.models.decoder import Decoder

from .inputs import StepInputs
from .last_tokens import LastTokens
from .packed import Field, PackedInputs, packed_bytes
from .planner import Planner

log = structlog.get_logger()


def graph_sizes(max_num_seqs: int) -> list[int]:
    """Numbers of rows to capture: 1, 2, 4, then finer than the growth of a step's time, up to max_num_seqs."""
    return sorted({min(size, max_num_seqs) for size in _sizes(max_num_seqs)})


def _sizes(limit: int) -> Iterator[int]:
    yield from (1, 2, 4)
    size = 8
    while size < limit:
        yield size
        size += 8 if size < 64 else 16 if size < 256 else 32 if size < 512 else 64
    yield limit


#: Fewest rows for which there are graphs that read shared runs of blocks once.
_LEAST_SHARING = 4

#: (rows, whether shared runs are read once)
_Key = tuple[int, bool]


class DecodeGraphs:
    """The model's forward pass for steps in which every sequence adds one token, captured at each of `graph_sizes`.

    A step with fewer rows runs in the next larger graph; the rows behind it are in no plan and write nowhere. All
    graphs put their logits into one tensor.
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
    ) -> None:
        """`logits` is [max_num_seqs, vocab_size], `shape` the plans' with max_num_seqs rows."""
        self._model = model
        self._kv_cache = kv_cache
        self._last_tokens = last_tokens
        self._tables = block_tables
        self._logits = logits
        self._planner = planner
        self._sizes = graph_sizes(shape.rows)
        device = kv_cache.device
        sharing = (False, True) if shape.shared else (False,)
        self._shapes = {
            (size, shared): replace(shape, rows=size, shared=shared)
            for size in self._sizes
            for shared in sharing
            if size >= _LEAST_SHARING or not shared
        }
        fields = {key: _fields(plan_shape) for key, plan_shape in self._shapes.items()}
        buffer = torch.zeros(max(map(packed_bytes, fields.values())), dtype=torch.uint8, device=device)
        self._inputs = {key: PackedInputs(buffer, wanted) for key, wanted in fields.items()}
        self._arrivals = torch.zeros(shape.rows * shape.kv_heads, dtype=torch.int32, device=device)
        self._rows = torch.arange(shape.rows, dtype=torch.int64, device=device)
        self._no_prefill = torch.zeros(1, dtype=torch.int32, device=device)
        self._graphs: dict[_Key, torch.cuda.CUDAGraph] = {}

    @torch.inference_mode()
    def capture(self, pool: Any) -> None:
        """Captures all sizes into `pool`, the largest first, so that the smaller ones fit into its memory."""
        start, before = time.perf_counter(), torch.cuda.mem_get_info(self._kv_cache.device)[0]
        none = np.zeros(0, dtype=np.int32)
        for key in sorted(self._shapes, reverse=True):
            inputs = self._inputs[key]
            inputs.send(**dict.fromkeys(inputs.tensors, none))
            batch = self._batch(key)
            # Whatever is compiled or allocated on first use must be there before the capture.
            self._forward(batch)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._forward(batch)
            self._graphs[key] = graph
        taken = before - torch.cuda.mem_get_info(self._kv_cache.device)[0]
        log.info(
            "decode graphs captured",
            graphs=len(self._graphs),
            seconds=round(time.perf_counter() - start, 1),
            mebibytes=taken // 2**20,
        )

    def forward(self, inputs: StepInputs, runs: list[SharedRun]) -> torch.Tensor:
        """Logits [n, vocab_size] of the step's n one-token rows; valid until the next call."""
        n = len(inputs.input_ids)
        size = next(size for size in self._sizes if size >= n)
        key = size, bool(runs) and (size, True) in self._shapes
        plan = self._planner.plan(inputs.context_lens, inputs.lines, self._shapes[key], runs)
        self._inputs[key].send(input_ids=inputs.input_ids, positions=inputs.positions, slots=inputs.slots, **plan)
        self._graphs[key].replay()
        return self._logits[:n]

    def _forward(self, batch: ForwardBatch) -> None:
        self._model.forward(batch, self._kv_cache, logits=self._logits[: len(batch.input_ids)])

    def _batch(self, key: _Key) -> ForwardBatch:
        inputs, size = self._inputs[key].tensors, key[0]
        # Kernels go by the plan: lines and lengths are only as many as the rows.
        unused = self._tables[:size, 0]
        return ForwardBatch(
            input_ids=inputs["input_ids"],
            newest=self._last_tokens.ids,
            positions=inputs["positions"],
            slot_mapping=inputs["slots"],
            num_decodes=size,
            block_tables=self._tables,
            lines=unused,
            context_lens=unused,
            cu_seqlens_q=self._no_prefill,
            max_query_len=0,
            logits_rows=self._rows[:size],
            decode_plan=DecodePlan.of(self._shapes[key], inputs, self._arrivals),
        )


def _fields(shape: PlanShape) -> dict[str, Field]:
    return {
        "input_ids": Field(np.int64, shape.rows),
        "positions": Field(np.int64, shape.rows),
        "slots": Field(np.int64, shape.rows, padding=-1),
        **plan_fields(shape),
    }


def plan_fields(shape: PlanShape) -> dict[str, Field]:
    """The arrays of a plan."""
    return {name: Field(np.int32, count, padding=-1) for name, count in shape.counts().items()}
