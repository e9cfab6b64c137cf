"""Penalties and biases of the rows that ask for them: how often each token occurred, kept on the device."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from millrace_kernels import apply_penalties, count_tokens, sample
from millrace_kernels.apply_penalties import IN_PROMPT, MOST_COUNTED
from millrace_schemas.sampling import MAX_LOGIT_BIAS

from .packed import Field, PackedInputs, packed_bytes
from .sequence import Sequence


@dataclass(frozen=True, slots=True)
class Penalised:
    """Penalised logits of some rows of a step. P of S rows."""

    logits: torch.Tensor  # [P, V] float32
    row: torch.Tensor  # [S] int32, of `logits`; -1: the row is not penalised
    rows: torch.Tensor  # [P] int64, of the step's logits
    places: torch.Tensor  # [P] int64, of the sequences in the table of counts


class Penalties:
    """Counts of the tokens of penalised sequences, in the sequences' rows.

    The device adds each token when it is sampled, since the next step is launched before the host knows it. What a
    sequence had when it started, or started again, comes from the host. The table, of max_num_seqs times the vocabulary
    times 2 bytes, is made when the first penalised sequence comes; that of biases with the first that has some.
    """

    def __init__(self, max_num_seqs: int, device: torch.device) -> None:
        self._max_num_seqs = max_num_seqs
        self._device = device
        self._counts: torch.Tensor | None = None
        #: Token ids (-1: none) and what is added to their logits, [max_num_seqs, MAX_LOGIT_BIAS].
        self._biases: tuple[torch.Tensor, torch.Tensor] | None = None
        #: Whose counts a row holds, and since which of its starts. It keeps no sequence that has ended.
        self._held: list[tuple[weakref.ref[Sequence], int] | None] = [None] * max_num_seqs
        fields = _fields(max_num_seqs)
        buffer = torch.zeros(packed_bytes(fields), dtype=torch.uint8, device=device)
        self._inputs = PackedInputs(buffer, fields)

    @property
    def num_bytes(self) -> int:
        """Of the table."""
        return 0 if self._counts is None else self._counts.nbytes

    def apply(self, logits: torch.Tensor, sequences: Mapping[int, Sequence]) -> Penalised:
        """Penalises rows of logits [S, V]; the keys are these rows. The logits stay as they are."""
        num_rows, vocab = logits.shape
        if self._counts is None:
            self._counts = torch.zeros((self._max_num_seqs, vocab), dtype=torch.int16, device=self._device)
        biased = any(seq.params.logit_bias for seq in sequences.values())
        if biased and self._biases is None:
            self._biases = _no_biases(self._max_num_seqs, self._device)
        for seq in sequences.values():
            self._hold(seq, self._counts)
        num, params = len(sequences), [seq.params for seq in sequences.values()]
        row = np.full(num_rows, -1, dtype=np.int32)
        row[list(sequences)] = np.arange(num)
        self._inputs.send(
            row=row,
            rows=np.array(list(sequences), dtype=np.int64),
            places=np.array([seq.row for seq in sequences.values()], dtype=np.int64),
            repetition=np.array([p.repetition_penalty for p in params], dtype=np.float32),
            frequency=np.array([p.frequency_penalty for p in params], dtype=np.float32),
            presence=np.array([p.presence_penalty for p in params], dtype=np.float32),
        )
        sent = {name: tensor[:num] for name, tensor in self._inputs.tensors.items() if name != "row"}
        changed = apply_penalties(
            logits,
            sent["rows"],
            self._counts,
            sent["places"],
            sent["repetition"],
            sent["frequency"],
            sent["presence"],
            *(self._biases if biased and self._biases is not None else (None, None)),
        )
        return Penalised(changed, self._inputs.tensors["row"][:num_rows], sent["rows"], sent["places"])

    def count(self, penalised: Penalised, ids: torch.Tensor) -> None:
        """Adds the tokens ids [S] that the step has sampled."""
        assert self._counts is not None
        count_tokens(self._counts, penalised.places, ids, penalised.rows)

    def _hold(self, seq: Sequence, counts: torch.Tensor) -> None:
        """Fills the row of a sequence that has started: all its tokens are known here then."""
        held = self._held[seq.row]
        if held is not None and held[0]() is seq and held[1] == seq.num_preempted:
            return
        self._held[seq.row] = weakref.ref(seq), seq.num_preempted
        _put(counts[seq.row], _counts_of(seq, counts.shape[1]))
        if self._biases is not None:
            ids, biases = self._biases
            given = [(token, bias) for token, bias in seq.params.logit_bias if token < counts.shape[1]]
            padding = [(-1, 0.0)] * (ids.shape[1] - len(given))
            _put(ids[seq.row], np.array([token for token, _ in given + padding], dtype=np.int32))
            _put(biases[seq.row], np.array([bias for _, bias in given + padding], dtype=np.float32))


def warm_up_penalties(logits: torch.Tensor) -> None:
    """Compiles what penalties launch, for logits [1, V] like these."""
    zero = torch.zeros(1, dtype=torch.int64, device=logits.device)
    one = torch.ones(1, device=logits.device)
    counts = torch.zeros(logits.shape, dtype=torch.int16, device=logits.device)
    penalised = apply_penalties(logits, zero, counts, zero, one, one, one, *_no_biases(1, logits.device))
    for any_filter in (False, True):
        row = {"penalised": penalised, "penalised_row": zero.int()}
        sample(logits, one, zero.int(), one, one, zero, zero, any_filter=any_filter, **row)
    count_tokens(counts, zero, zero, zero)


def _no_biases(rows: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.full((rows, MAX_LOGIT_BIAS), -1, dtype=torch.int32, device=device)
    return ids, torch.zeros((rows, MAX_LOGIT_BIAS), dtype=torch.float32, device=device)


def _put(row: torch.Tensor, values: np.ndarray) -> None:
    """Fills a row of a table on the device, behind what was launched before."""
    fresh = torch.from_numpy(values)
    row.copy_(fresh.pin_memory() if row.is_cuda else fresh, non_blocking=True)


def _counts_of(seq: Sequence, vocab: int) -> np.ndarray:
    prompt, generated = seq.tokens[: seq.num_prompt], seq.tokens[seq.num_prompt :]
    counts = np.bincount(np.array(generated, dtype=np.int64), minlength=vocab).clip(max=MOST_COUNTED).astype(np.int16)
    counts[np.array(prompt, dtype=np.int64)] |= np.int16(IN_PROMPT)
    return counts


def _fields(rows: int) -> dict[str, Field]:
    return {
        "row": Field(np.int32, rows, padding=-1),
        "rows": Field(np.int64, rows),
        "places": Field(np.int64, rows),
        "repetition": Field(np.float32, rows),
        "frequency": Field(np.float32, rows),
        "presence": Field(np.float32, rows),
    }
