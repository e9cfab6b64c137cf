"""What a disk tier is asked for, and within which bounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .kv_record import BlockName


@dataclass(frozen=True, slots=True)
class TierLimits:
    """Seconds and bytes of host memory."""

    #: A read that is not there after this, or some times what it should take, is given up; so long may a write take.
    read_seconds: float = 2.0
    #: The engine starts without the disk when it was not opened within this; it is used once it is open.
    open_seconds: float = 10.0
    #: A directory that another process uses is asked for again after so long.
    lock_seconds: float = 3.0
    #: For what is still to be written at the end.
    close_seconds: float = 3.0
    #: After a read was given up, nothing is read for so long; twice as long each further time, up to the second.
    read_pause: float = 10.0
    most_read_pause: float = 600.0
    #: After a write failed, nothing is written for so long.
    write_pause: float = 60.0
    most_read_bytes: int = 512 * 2**20
    most_written_bytes: int = 256 * 2**20


class Reading:
    """Blocks of one prompt on their way from a store, in order; `good` of them are there, from the first on.

    Until it `is_done` a thread may fill buffers, also of blocks that are not wanted any more.
    """

    def __init__(self, names: list[BlockName], into: list[torch.Tensor | None] | None = None) -> None:
        """`into` are the buffers for them, [block_bytes] uint8 each; None: the store finds one."""
        self.names = names
        self.into = into if into is not None else [None] * len(names)
        self.buffers: list[torch.Tensor | None] = [None] * len(names)
        #: Blocks from here on are not wanted any more.
        self.end = len(names)
        self.is_done = False
        #: From the first byte to the last.
        self.seconds = 0.0
        #: Why it is shorter than was asked for.
        self.reason: str | None = None
        self.left = len(names)
        self.began: float | None = None

    @property
    def good(self) -> list[torch.Tensor]:
        """What was read, up to the first block that was not."""
        found: list[torch.Tensor] = []
        for buffer in self.buffers[: self.end]:
            if buffer is None:
                break
            found.append(buffer)
        return found


@dataclass(slots=True)
class Writing:
    """Blocks of one prompt to be written, and the chain of hashes from the prompt's first block to the last of them.

    Once it `is_done` nobody reads the buffers any more.
    """

    chain: list[bytes]
    names: list[BlockName]
    buffers: list[torch.Tensor]
    is_done: bool = False
