"""The newest token of each running sequence, on the device: the next step reads it there before the host knows it."""

from __future__ import annotations

import numpy as np
import torch


class LastTokens:
    """One row a running sequence, as in SequenceTables; written by sampling, read by the step after it."""

    def __init__(self, max_num_seqs: int, device: torch.device) -> None:
        #: [max_num_seqs] int64; `pending(row)` among a step's input ids stands for the id of a row.
        self.ids = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)

    def put(self, rows: torch.Tensor, ids: torch.Tensor) -> None:
        """Ids [R] that were sampled for the sequences in these rows [R] int64."""
        self.ids.index_copy_(0, rows, ids)


def pending(rows: np.ndarray) -> np.ndarray:
    """Stands for the newest tokens of these rows, which the host may not know yet."""
    return -1 - rows
