"""Blocks that are fetched for one sequence: from which tiers, and what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass

from .block_copies import Copy
from .disk_requests import Reading
from .load_plan import Store
from .sequence import Sequence


@dataclass(frozen=True, slots=True)
class Part:
    """Blocks from one store; `slots` of the CPU tier hold them, or are to, the first ones first."""

    store: Store
    reading: Reading
    slots: list[int]


@dataclass(frozen=True, slots=True)
class Load:
    """What is fetched for one sequence, and until when."""

    seq: Sequence
    #: Of the prompt's blocks before these.
    heads: list[bytes]
    parts: list[Part]
    began: float
    deadline: float
    is_trial: bool

    @property
    def hashes(self) -> list[bytes]:
        return [name.chain_hash for part in self.parts for name in part.reading.names]

    @property
    def is_done(self) -> bool:
        return all(part.reading.is_done for part in self.parts)


@dataclass(frozen=True, slots=True)
class Inward:
    """Blocks of it that are being copied to the device."""

    load: Load
    #: Blocks of the pool that hold what comes before them.
    heads: list[int]
    copy: Copy
