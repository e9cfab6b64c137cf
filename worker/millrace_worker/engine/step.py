"""The values that cross from the scheduler to the runner and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .sequence import Sequence

#: What a sequence costs a step beyond its tokens, in tokens: its context is read.
SEQUENCE_COST = 8


@dataclass(frozen=True, slots=True)
class Scheduled:
    """`count` tokens of `seq` from position `start` on get their KV in this step.

    When they reach the sequence's last token, the step also samples the next one.
    """

    seq: Sequence
    start: int
    count: int
    samples: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass: one-token rows first, as the attention kernels want them. Arrays of S sequences."""

    seqs: list[Sequence]
    rows: np.ndarray  # [S] int64
    starts: np.ndarray  # [S] int64
    counts: np.ndarray  # [S] int64
    samples: np.ndarray  # [S] bool
    #: [S] bool: the tokens were there when the sequence started. Others were sampled, and are on the device.
    known: np.ndarray
    #: Those that sample, in the order of `seqs`.
    sampling: list[Sequence]
    #: Those whose last token the step samples, if they go on for so long.
    last: list[Sequence]
    #: Those whose block tables are longer than in the step before, or new.
    grown: list[Sequence]
    num_decodes: int
    num_tokens: int

    @property
    def scheduled(self) -> tuple[Scheduled, ...]:
        """Each sequence's part by itself, for those who look at one after the other."""
        columns = (self.starts.tolist(), self.counts.tolist(), self.samples.tolist())
        return tuple(map(Scheduled, self.seqs, *columns))

    @property
    def cost(self) -> int:
        """What the step takes of a device, in tokens of a prompt; see SEQUENCE_COST."""
        return self.num_tokens + SEQUENCE_COST * len(self.seqs)
