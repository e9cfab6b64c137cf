"""Block tables on the device: one stable line a running sequence, brought up to date by what has changed."""

from __future__ import annotations

import numpy as np
import torch

from .packed import Field, PackedInputs, packed_bytes


class DeviceTables:
    """The device's copy of SequenceTables.blocks, which is the copy itself on a CPU.

    What is sent takes effect behind the steps that were launched before, and before those that are launched after.
    """

    def __init__(self, blocks: np.ndarray, device: torch.device) -> None:
        """`blocks` is the host's table, [max_num_seqs, max_blocks] int32."""
        host = torch.from_numpy(blocks)
        self._host = blocks
        #: [max_num_seqs, max_blocks] int32
        self.blocks = host if device.type == "cpu" else host.to(device)

    def send(self, changes: list[tuple[int, int, int]]) -> None:
        """Copies the entries of each (line, first, end) from the host's table."""
        if not changes or self.blocks.device.type == "cpu":
            return
        width = self._host.shape[1]
        places = [np.arange(line * width + first, line * width + end) for line, first, end in changes]
        values = [self._host[line, first:end] for line, first, end in changes]
        place, value = np.concatenate(places), np.concatenate(values)
        fields = {"place": Field(np.int64, len(place)), "value": Field(np.int32, len(value))}
        buffer = torch.empty(packed_bytes(fields), dtype=torch.uint8, device=self.blocks.device)
        packed = PackedInputs(buffer, fields)
        packed.send(place=place, value=value)
        self.blocks.view(-1).index_copy_(0, packed.tensors["place"], packed.tensors["value"])
