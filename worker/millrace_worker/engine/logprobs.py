"""Log-probabilities of the tokens of a step, for the rows that ask for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from millrace_kernels import logprobs
from millrace_schemas.logprobs import LEAST_LOGPROB
from millrace_worker.frames import Likely


@dataclass(frozen=True, slots=True)
class Wanted:
    """Rows of the logits whose sequences ask. L of them."""

    seq_ids: list[int]
    tops: list[int]
    #: [L] int64
    rows: torch.Tensor


@dataclass(frozen=True, slots=True)
class StepLogprobs:
    """What came of it. n is the most that any of them asks for."""

    wanted: Wanted
    chosen: torch.Tensor  # [L] float32
    top_ids: torch.Tensor  # [L, n] int64
    top: torch.Tensor  # [L, n] float32

    @classmethod
    def of(cls, logits: torch.Tensor, sampled: torch.Tensor, wanted: Wanted) -> StepLogprobs:
        """Of logits [S, V] as the model made them, and the ids [S] that were sampled."""
        return cls(wanted, *logprobs(logits, wanted.rows, sampled, max(wanted.tops)))

    def to_host(self) -> StepLogprobs:
        """The same on the CPU, once the device has come so far."""
        tensors = (tensor.to("cpu", non_blocking=True) for tensor in (self.chosen, self.top_ids, self.top))
        return StepLogprobs(self.wanted, *tensors)

    def read(self) -> dict[int, Likely]:
        """By sequence. On the CPU, when all is there."""
        chosen, top = _finite(self.chosen), _finite(self.top)
        found = {}
        for seq_id, n, one, ids, values in zip(
            self.wanted.seq_ids, self.wanted.tops, chosen, self.top_ids.tolist(), top, strict=True
        ):
            found[seq_id] = Likely(one, ids[:n], values[:n])
        return found


def warm_up_logprobs(logits: torch.Tensor) -> None:
    """Compiles what log-probabilities launch, for logits [1, V] like these."""
    zero = torch.zeros(1, dtype=torch.int64, device=logits.device)
    for top in (0, 20):
        logprobs(logits, zero, zero, top)


def _finite(values: torch.Tensor) -> Any:
    """Lists of numbers, as `values` is shaped."""
    return np.maximum(values.numpy(), np.float32(LEAST_LOGPROB)).tolist()
