"""What a step asks of every running sequence, side by side, so that it is asked of all of them at once."""

from __future__ import annotations

import numpy as np

from .sequence import Sequence


class RowCounts:
    """Counts of the running sequences by their row, [max_num_seqs] int64 each; zeros where there is none.

    There is no prefill or decode: `computed` tokens have their KV in the cache, or will have it when the steps that are
    scheduled have run. They chase all `tokens`, those included that these steps will sample. A fresh prompt, a prefix
    hit, a preempted sequence and one resumed after a crash differ only in these two numbers.

    `known` tokens were there when the sequence started, or started again; `most` may be computed at all; `capacity`
    slots are in the blocks that it holds.
    """

    def __init__(self, max_num_seqs: int) -> None:
        self._all = np.zeros((6, max_num_seqs), dtype=np.int64)
        self.prompt, self.computed, self.tokens, self.capacity, self.known, self.most = self._all
        self._free = list(range(max_num_seqs - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Rows that no sequence has."""
        return len(self._free)

    def start(self, seq: Sequence, num_computed: int) -> None:
        """Gives `seq` a row; its tokens are all known, and of so many the blocks that it has hold the KV."""
        seq.row = self._free.pop()
        # The last token that may be sampled is never computed.
        most = seq.num_prompt + seq.params.max_tokens - 1
        self._all[:, seq.row] = seq.num_prompt, num_computed, seq.num_tokens, num_computed, seq.num_tokens, most

    def vacate(self, seq: Sequence) -> None:
        """Takes the row back."""
        self._all[:, seq.row] = 0
        self._free.append(seq.row)
        seq.row = -1

    def owed(self, rows: np.ndarray) -> np.ndarray:
        """Tokens that these rows have yet to compute, none where the last token is on its way."""
        return np.minimum(self.tokens[rows], self.most[rows]) - self.computed[rows]

    @property
    def num_empty(self) -> int:
        """Slots of allocated blocks that hold no token. Shared blocks have none: they are full."""
        return int(self.capacity.sum() - self.computed.sum())
