"""From a Step to arrays: what the host knows of each running sequence, and the inputs of one forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .last_tokens import pending
from .sequence import Sequence
from .step import Step


class SequenceTables:
    """Block tables and sampling settings on the host, one stable row a running sequence, written by differences."""

    def __init__(self, max_num_seqs: int, max_blocks: int) -> None:
        self.blocks = np.zeros((max_num_seqs, max_blocks), dtype=np.int32)
        self.temperature = np.zeros(max_num_seqs, dtype=np.float32)
        self.top_k = np.zeros(max_num_seqs, dtype=np.int32)
        self.top_p = np.ones(max_num_seqs, dtype=np.float32)
        self.min_p = np.zeros(max_num_seqs, dtype=np.float32)
        self.seed = np.zeros(max_num_seqs, dtype=np.int64)
        #: (row, first, end) of entries of `blocks` that were written since the list was last taken.
        self.changes: list[tuple[int, int, int]] = []
        self.penalised = np.zeros(max_num_seqs, dtype=np.bool_)
        self.logprobs = np.zeros(max_num_seqs, dtype=np.bool_)
        #: Whether any of top_k, top_p and min_p is in use.
        self.filtered = np.zeros(max_num_seqs, dtype=np.bool_)
        #: Total tokens from which on stop ids may be sampled.
        self.may_stop = np.zeros(max_num_seqs, dtype=np.int64)
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
            self.penalised[row] = params.penalised
            self.logprobs[row] = params.logprobs is not None
            self.filtered[row] = params.top_k > 0 or params.top_p < 1 or params.min_p > 0
            self.may_stop[row] = seq.num_prompt + params.min_tokens if params.stop_token_ids else 0
        written, length = self._lengths[row], len(table)
        if written < length:
            self.blocks[row, written:length] = table[written:]
            self._lengths[row] = length
            self.changes.append((row, written, length))


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Inputs of one forward pass on the host, in the order of `step.seqs`. T tokens of S sequences."""

    input_ids: np.ndarray  # [T] int64, last_tokens.pending(row) where only the device knows it
    positions: np.ndarray  # [T] int64
    slots: np.ndarray  # [T] int64
    lines: np.ndarray  # [S] int32, of the sequences in the block tables
    context_lens: np.ndarray  # [S] int32
    counts: np.ndarray  # [S] int64, tokens of each sequence
    ends: np.ndarray  # [S] int64, their running sum
    samples: np.ndarray  # [S] bool
    num_decodes: int

    @classmethod
    def of(cls, step: Step, tables: SequenceTables, block_size: int) -> StepInputs:
        rows, starts, counts = step.rows, step.starts, step.counts
        ends = np.cumsum(counts)
        if step.num_decodes == len(rows):
            positions, token_rows = starts, rows
        else:
            # Of each token: its sequence's start plus its distance from the sequence's first token in the step.
            positions = np.arange(step.num_tokens) - np.repeat(ends - counts - starts, counts)
            token_rows = np.repeat(rows, counts)
        places, offsets = np.divmod(positions, block_size)
        context = starts + counts
        return cls(
            input_ids=_token_ids(step),
            positions=positions,
            slots=tables.blocks[token_rows, places].astype(np.int64) * block_size + offsets,
            lines=rows.astype(np.int32),
            context_lens=context.astype(np.int32),
            counts=counts,
            ends=ends,
            samples=step.samples,
            num_decodes=step.num_decodes,
        )

    @property
    def prefill_bounds(self) -> np.ndarray:
        """First token of each prefill, and the end of the last: [S - num_decodes + 1] int32."""
        bounds = np.concatenate(([self.num_decodes], self.ends[self.num_decodes :]))
        return bounds.astype(np.int32)

    @property
    def is_decode(self) -> bool:
        """Whether every sequence adds one token and samples the next."""
        return self.num_decodes == len(self.counts) and bool(self.samples.all())


def _token_ids(step: Step) -> np.ndarray:
    ids = np.empty(step.num_tokens, dtype=np.int64)
    offset = step.num_decodes
    # Also where the host knows it by now, a sampled token is read on the device: no list is looked into.
    ids[:offset] = pending(step.rows[:offset])
    for index in np.flatnonzero(step.known[:offset]).tolist():
        ids[index] = step.seqs[index].tokens[step.starts[index]]
    prefills = zip(step.seqs[offset:], step.starts[offset:].tolist(), step.counts[offset:].tolist(), strict=True)
    for seq, start, count in prefills:
        ids[offset : offset + count] = seq.tokens[start : start + count]
        offset += count
    return ids
