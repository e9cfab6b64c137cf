"""Attention of one step: decode rows and prefill rows of a batch go to their own kernels and into one output."""

from __future__ import annotations

import torch

from millrace_kernels import paged_decode, paged_prefill

from .batch import ForwardBatch


class PagedAttention:
    """The attention of one forward pass; its slices of the batch are made once, for all layers."""

    __slots__ = ("_batch", "_decode_lens", "_decode_lines", "_prefill_lens", "_prefill_lines", "_scale")

    def __init__(self, batch: ForwardBatch, head_dim: int):
        decodes = batch.num_decodes
        self._batch = batch
        self._scale = head_dim**-0.5
        self._decode_lines, self._prefill_lines = batch.lines[:decodes], batch.lines[decodes:]
        self._decode_lens, self._prefill_lens = batch.context_lens[:decodes], batch.context_lens[decodes:]

    @property
    def slot_mapping(self) -> torch.Tensor:
        """Where the keys and values of this step's tokens go."""
        return self._batch.slot_mapping

    def attend(self, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        """Attention of the queries [T, Hq, D] over their contexts in `kv`, this step's tokens included."""
        batch, decodes = self._batch, self._batch.num_decodes
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if decodes:
            paged_decode(
                q[:decodes],
                kv,
                batch.block_tables,
                self._decode_lens,
                self._scale,
                lines=self._decode_lines,
                plan=batch.decode_plan,
                out=out[:decodes],
            )
        # Behind the decodes: rows of theirs that are none may be a prefill's.
        if batch.max_query_len:
            paged_prefill(
                q,
                kv,
                batch.block_tables,
                batch.cu_seqlens_q,
                self._prefill_lens,
                batch.max_query_len,
                self._scale,
                lines=self._prefill_lines,
                out=out,
                arrivals=batch.prefill_arrivals,
            )
        return out
