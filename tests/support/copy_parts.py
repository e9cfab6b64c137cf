"""Copies between a few blocks and a little host memory, that run when a test says so."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from disk_parts import LateCopies, LateCopy
from millrace_worker.engine.block_pool import BlockPool
from millrace_worker.engine.disk_requests import TierLimits
from millrace_worker.engine.disk_tier import DiskTier
from millrace_worker.engine.fingerprint import Identity
from millrace_worker.engine.host_arena import HostArena
from millrace_worker.engine.host_tier import HostTier
from millrace_worker.engine.keeping import Keeping
from millrace_worker.engine.kv_record import BlockName
from millrace_worker.engine.load_costs import LoadCosts
from millrace_worker.engine.loads import Loads
from millrace_worker.engine.prefix_cache import ROOT, ChainHasher
from millrace_worker.engine.sequence import Sequence
from millrace_worker.frames import SequenceParams

BLOCK, BLOCK_BYTES = 4, 64
IDENTITY = Identity(
    weights="w", config="c", dtype="float32", kv_dtype="float32", layout_version=1, kernels="cpu 1", block_size=BLOCK
)
MINE, ANOTHER = 7, 9


class WhenTold(LateCopies):
    """Copies run when the test says so."""

    def _copy(self, blocks: list[int], host: list[torch.Tensor], pairs: list[Any], stream: Any) -> Any:
        self.last = LateCopy(blocks, host, pairs, 10**9)
        return self.last


class Parts:
    """A pool of 4 blocks of one prompt's, and host memory for 2."""

    def __init__(self, disk: DiskTier | None = None) -> None:
        self.memory = torch.zeros((4, BLOCK_BYTES), dtype=torch.uint8)
        self.pool, self.copies = BlockPool(4), WhenTold(self.memory)
        self.host = HostTier(HostArena(2 * BLOCK_BYTES, BLOCK_BYTES))
        self.host.start()
        self.seq = Sequence(1, list(range(10, 19)), [], SequenceParams(max_tokens=1))
        ChainHasher(BLOCK).extend(self.seq, 2)
        costs, both = LoadCosts(), {"host": self.host, "disk": disk}
        self.loads = Loads(self.pool, self.copies, costs, block_size=BLOCK, **both, misses=Counter())
        self.keeping = Keeping(self.pool, self.copies, **both, name=block_name, unwritten=Counter())

    @property
    def first(self) -> bytes:
        return self.seq.block_hashes[0]

    def others_come(self) -> list[int]:
        """As much of the host memory as can be had is given to another's blocks."""
        slots = self.host.take(2)
        for slot in slots:
            self.host.slot(slot).fill_(ANOTHER)
        return slots

    def forget_references(self) -> None:
        """From now on slots are given away as if nobody held them."""
        slots = self.host._slots
        slots.release([slot for slot in range(2) for _ in range(slots.references(slot))])
        slots.share = slots.release = lambda blocks: None  # type: ignore[method-assign, assignment]


def open_disk(directory: Path, **limits: float) -> DiskTier:
    """A disk tier for blocks of this size, begun to be opened."""
    tier = DiskTier(
        directory,
        10**6,
        block_size=BLOCK,
        block_bytes=BLOCK_BYTES,
        new_buffer=lambda: torch.empty(BLOCK_BYTES, dtype=torch.uint8),
        limits=TierLimits(**limits),
    )
    tier.start(lambda: IDENTITY)
    return tier


def block_name(seq: Sequence, number: int) -> BlockName:
    tokens = tuple(seq.tokens[number * BLOCK : (number + 1) * BLOCK])
    parent = seq.block_hashes[number - 1] if number else ROOT
    return BlockName(IDENTITY.fingerprint, seq.block_hashes[number], parent, tokens)
