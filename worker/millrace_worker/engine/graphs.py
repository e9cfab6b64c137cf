"""CUDA graphs of decode steps: one launch where a small model would wait for the host at each of its kernels."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import structlog
import torch

from millrace_worker.models.batch import ForwardBatch
from millrace_worker.models.decoder import Decoder

from .last_tokens import LastTokens
from .packed import Field, PackedInputs, packed_bytes, pinned

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


class DecodeGraphs:
    """The model's forward pass for steps in which every sequence adds one token, captured at each of `graph_sizes`.

    A step with fewer rows runs in the next larger graph; the rows behind it have no context and write nowhere.
    """

    def __init__(
        self, model: Decoder, kv_cache: torch.Tensor, last_tokens: LastTokens, *, max_num_seqs: int, max_blocks: int
    ) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._last_tokens = last_tokens
        self._sizes = graph_sizes(max_num_seqs)
        device = kv_cache.device
        buffer = torch.zeros(packed_bytes(_fields(self._sizes[-1])), dtype=torch.uint8, device=device)
        self._inputs = {size: PackedInputs(buffer, _fields(size)) for size in self._sizes}
        self._rows = torch.arange(max_num_seqs, dtype=torch.int64, device=device)
        self._tables = torch.zeros((max_num_seqs, max_blocks), dtype=torch.int32, device=device)
        self._no_prefill = torch.zeros(1, dtype=torch.int32, device=device)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}

    @torch.inference_mode()
    def capture(self, pool: Any) -> None:
        """Captures all sizes into `pool`, the largest first, so that the smaller ones fit into its memory."""
        start, before = time.perf_counter(), torch.cuda.mem_get_info(self._kv_cache.device)[0]
        none = np.zeros(0, dtype=np.int64)
        for size in reversed(self._sizes):
            self._inputs[size].send(input_ids=none, positions=none, slots=none, context=none)
            batch = self._batch(size)
            # Whatever is compiled or allocated on first use must be there before the capture.
            self._forward(batch)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                logits = self._forward(batch)
            self._graphs[size] = (graph, logits)
        taken = before - torch.cuda.mem_get_info(self._kv_cache.device)[0]
        log.info(
            "decode graphs captured",
            sizes=len(self._sizes),
            seconds=round(time.perf_counter() - start, 1),
            mebibytes=taken // 2**20,
        )

    def forward(
        self, input_ids: np.ndarray, positions: np.ndarray, slots: np.ndarray, tables: np.ndarray, context: np.ndarray
    ) -> torch.Tensor:
        """Logits [n, vocab_size] of n one-token rows; valid until the next call.

        Shapes: [n] each, `tables` [n, blocks].
        """
        n = len(input_ids)
        size = next(size for size in self._sizes if size >= n)
        self._inputs[size].send(input_ids=input_ids, positions=positions, slots=slots, context=context)
        self._tables[:n, : tables.shape[1]].copy_(pinned(tables), non_blocking=True)
        graph, logits = self._graphs[size]
        graph.replay()
        return logits[:n]

    def _forward(self, batch: ForwardBatch) -> torch.Tensor:
        known = replace(batch, input_ids=self._last_tokens.resolve(batch.input_ids))
        return self._model.forward(known, self._kv_cache)

    def _batch(self, size: int) -> ForwardBatch:
        inputs = self._inputs[size].tensors
        return ForwardBatch(
            input_ids=inputs["input_ids"],
            positions=inputs["positions"],
            slot_mapping=inputs["slots"],
            num_decodes=size,
            block_tables=self._tables[:size],
            context_lens=inputs["context"],
            cu_seqlens_q=self._no_prefill,
            max_query_len=0,
            logits_rows=self._rows[:size],
        )


def _fields(size: int) -> dict[str, Field]:
    return {
        "input_ids": Field(np.int64, size),
        "positions": Field(np.int64, size),
        "slots": Field(np.int64, size, padding=-1),
        "context": Field(np.int32, size),
    }
