"""Which blocks of a prompt are fetched, and from which tier: as many as save the most time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from .disk_requests import Reading
from .kv_record import BlockName
from .load_costs import LoadCosts

#: Of a tier that was too slow when it was last asked, so many blocks are tried.
_TRIED = 8


class Store(Protocol):
    """A tier below the block pool, as far as blocks are fetched from it. Nothing here waits."""

    name: str
    #: What a block takes in it.
    record_bytes: int

    def has(self, chain_hash: bytes) -> bool:
        """Whether the block can be asked for."""

    def why_not(self, chain_hash: bytes) -> str:
        """Why `has` is false, for a counter."""

    @property
    def may_read(self) -> bool:
        """False while it is left alone."""

    @property
    def read_room(self) -> int:
        """Blocks that may be asked for now."""

    @property
    def reading_bytes(self) -> int:
        """What others wait for."""

    def read(self, names: list[BlockName], into: list[torch.Tensor | None]) -> Reading:
        """Begins to read blocks that follow each other."""

    def give_up(self, reading: Reading, *, leave_alone: bool = True) -> None:
        """What was not read by now is not wanted any more; with `leave_alone` nothing is read for a while."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Blocks that follow each other and come from one store."""

    store: Store
    count: int


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What to fetch of a prompt's missing blocks, from the first on, and why not all of it."""

    segments: list[Segment]
    #: A word for a counter.
    reason: str | None = None
    #: The tier that would be slower than computing.
    slow: Store | None = None
    #: What the blocks should take.
    seconds: float = 0.0
    #: A trial of a slow tier ends after this: computing takes no longer.
    most_seconds: float | None = None

    @property
    def count(self) -> int:
        return sum(segment.count for segment in self.segments)


def plan_load(
    missing: list[bytes], stores: Sequence[Store], costs: LoadCosts, *, block_size: int, copying_bytes: int
) -> LoadPlan:
    """The plan for blocks of these names, which have room; so much is being copied to the device already.

    `stores` go from the fastest to the slowest.
    """
    segments, reason = _segments(missing, stores)
    if not segments:
        return LoadPlan([], reason)
    # Up to which segment do loads save most against computing? A slow one may be worth it for those behind it.
    best, best_saved, best_seconds = 0, 0.0, 0.0
    count, read_bytes = 0, {store.name: store.reading_bytes for store in stores}
    for number, segment in enumerate(segments, start=1):
        count += segment.count
        read_bytes[segment.store.name] += segment.count * segment.store.record_bytes
        used = {part.store.name for part in segments[:number]} - {"cpu"}
        reads = [costs.read_seconds(name, read_bytes[name]) or 0.0 for name in used]
        copied = copying_bytes + count * segment.store.record_bytes
        seconds = max(reads, default=0.0) + (costs.read_seconds("cpu", copied) or 0.0)
        recompute = costs.recompute_seconds(count * block_size)
        saved = float("inf") if recompute is None else recompute - seconds
        if saved > best_saved or (recompute is None and number > best):
            best, best_saved, best_seconds = number, saved, seconds
    if best == len(segments):
        return LoadPlan(segments, seconds=best_seconds)
    slow = segments[best].store
    if costs.refuse(slow.name):
        tried = [*segments[:best], Segment(slow, min(_TRIED, segments[best].count))]
        tokens = sum(segment.count for segment in tried) * block_size
        return LoadPlan(tried, most_seconds=costs.recompute_seconds(tokens))
    return LoadPlan(segments[:best], "slower", slow, seconds=best_seconds)


def _segments(missing: list[bytes], stores: Sequence[Store]) -> tuple[list[Segment], str | None]:
    """Where the blocks are, up to the first that cannot be had, and why that is so if it is the very first."""
    segments: list[Segment] = []
    reason: str | None = None
    left = {store.name: store.read_room if store.may_read else 0 for store in stores}
    last: Store | None = None
    count = 0
    for name in missing:
        store = next((store for store in stores if store.has(name)), None)
        if store is None:
            reason = stores[-1].why_not(name)
            break
        if left[store.name] == 0:
            reason = "no_room" if store.may_read else "paused"
            break
        if store is not last and last is not None:
            segments.append(Segment(last, count))
            count = 0
        left[store.name] -= 1
        last, count = store, count + 1
    if last is not None:
        segments.append(Segment(last, count))
    return segments, None if segments else reason
