"""What changes from step to step, side by side in one buffer on the device that one copy fills."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

#: Where an array may begin: what a kernel takes for aligned.
_ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class Field:
    """`count` numbers; `padding` stands behind those that a step brings."""

    dtype: type[np.generic]
    count: int
    padding: int = 0

    @property
    def nbytes(self) -> int:
        return -(-self.count * np.dtype(self.dtype).itemsize // _ALIGNMENT) * _ALIGNMENT


class PackedInputs:
    """One-dimensional arrays of fixed sizes at fixed places of a buffer, as CUDA graphs want them."""

    def __init__(self, buffer: torch.Tensor, fields: Mapping[str, Field]) -> None:
        """`buffer` is uint8, of at least `packed_bytes(fields)`. Several may share one: the last to send has it."""
        self._target = buffer[: packed_bytes(fields)]
        self._fields: dict[str, tuple[int, Field]] = {}
        #: Views of the buffer.
        self.tensors: dict[str, torch.Tensor] = {}
        offset = 0
        for name, field in fields.items():
            self._fields[name] = offset, field
            dtype = torch.from_numpy(np.empty(0, dtype=field.dtype)).dtype
            self.tensors[name] = buffer[offset : offset + field.nbytes].view(dtype)[: field.count]
            offset += field.nbytes

    def send(self, **arrays: np.ndarray) -> None:
        """Fills every field, behind what was launched before; the arrays may be changed afterwards."""
        # Pinned memory comes from a cache that holds it back until the copy is done.
        staged = torch.empty(len(self._target), dtype=torch.uint8, pin_memory=self._target.is_cuda)
        raw = staged.numpy()
        for name, (offset, field) in self._fields.items():
            part, values = raw[offset : offset + field.nbytes].view(field.dtype), arrays[name]
            if len(values) > field.count:
                raise ValueError(f"{name} has {len(values)} numbers; there is room for {field.count}")
            part[: len(values)] = values
            part[len(values) :] = field.padding
        self._target.copy_(staged, non_blocking=True)


def packed_bytes(fields: Mapping[str, Field]) -> int:
    return sum(field.nbytes for field in fields.values())
