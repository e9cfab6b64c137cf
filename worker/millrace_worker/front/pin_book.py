"""The pins of the queue as this front knows them, and what its engine says of each."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from millrace_schemas import HeldPin, Pin
from millrace_worker.frames import PinnedPrefix, PinState, Ready
from millrace_worker.stream.pins import PinsFound

log = structlog.get_logger(__name__)

#: Fastest first; the engine's block pool is "gpu" on a CPU, too.
TIERS = ("gpu", "cpu", "disk", "s3")
#: Where a pin is that need not be waited for.
FASTEST = TIERS[0]
#: Engines that died in a row while they made a pin resident, after which it is not told to another one.
_MOST_CRASHES = 2


class PinLink(Protocol):
    """What a book asks of an engine's link."""

    def pin(self, prefix: PinnedPrefix) -> None: ...

    def unpin(self, pin_id: str) -> None: ...


@dataclass(slots=True)
class _Entry:
    pin: Pin
    #: What this engine said of it last; None: nothing yet.
    state: PinState | None = None
    #: Why this engine is not told of it.
    problem: str = ""
    #: Whether it was.
    told: bool = False
    #: Engines that died while they made it resident, one after the other.
    crashes: int = 0
    #: Of engines that are gone.
    hits: int = 0
    #: How many it had when it was last prolonged for them.
    hits_seen: int = 0

    @property
    def all_hits(self) -> int:
        return self.hits + (self.state.hits if self.state else 0)

    @property
    def settled(self) -> bool:
        """Whether nothing is to be waited for."""
        return bool(self.problem) or (self.state is not None and bool(self.state.problem or self.state.tier == FASTEST))


class PinBook:
    """Tells each engine what is pinned. `changed` is set when something of it is new."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._link: PinLink | None = None
        self._ready: Ready | None = None
        self.changed = asyncio.Event()

    def __contains__(self, pin_id: str) -> bool:
        return pin_id in self._entries

    @property
    def ids(self) -> list[str]:
        return list(self._entries)

    def unsettled(self, ids: Sequence[str]) -> list[str]:
        """Those of `ids` that are pinned, and of which the engine says neither that they are there nor why not."""
        return [pin_id for pin_id in ids if pin_id in self._entries and not self._entries[pin_id].settled]

    def found(self, pins: PinsFound) -> None:
        """What the registry holds now."""
        for pin_id in [pin_id for pin_id in self._entries if pin_id not in pins.ids]:
            entry = self._entries.pop(pin_id)
            if self._link is not None and entry.told:
                self._link.unpin(pin_id)
            self.changed.set()
        for pin in pins.new:
            if pin.id not in self._entries:
                self._entries[pin.id] = entry = _Entry(pin)
                self._tell(entry)
                self.changed.set()
        # One of those that went may have been waited for.
        self._tell_suspect()

    def engine_serves(self, link: PinLink, ready: Ready) -> None:
        """A fresh engine, which knows of no pin."""
        self._link, self._ready = link, ready
        for entry in self._entries.values():
            if not entry.crashes:
                self._tell(entry)
        self._tell_suspect()
        self.changed.set()

    def engine_died(self) -> None:
        """Pins that it was making resident may be what killed it. The next one is told them one by one."""
        for entry in self._entries.values():
            entry.crashes += entry.told and not entry.settled
            entry.hits, entry.state, entry.told, entry.problem = entry.all_hits, None, False, ""
        self._link = self._ready = None
        self.changed.set()

    def on_states(self, states: Sequence[PinState]) -> None:
        """What the engine says of all its pins."""
        for state in states:
            entry = self._entries.get(state.pin_id)
            if entry is not None and entry.told:
                entry.state = state
                if entry.settled:
                    entry.crashes = 0
        self._tell_suspect()
        self.changed.set()

    def used(self) -> dict[str, int]:
        """Pins with hits that were not yet prolonged for, and how many they have."""
        return {pin_id: entry.all_hits for pin_id, entry in self._entries.items() if entry.all_hits > entry.hits_seen}

    def prolonged(self, used: Mapping[str, int]) -> None:
        for pin_id, hits in used.items():
            if pin_id in self._entries:
                self._entries[pin_id].hits_seen = hits

    def held(self) -> tuple[HeldPin, ...]:
        """Every pin, and where it is."""
        return tuple(_held(entry) for entry in self._entries.values())

    def by_tier(self) -> dict[str, int]:
        """How many of them each tier holds as the fastest; "none" are in no tier."""
        counts = dict.fromkeys((*TIERS, "none"), 0)
        for held in self.held():
            counts[held.tier or "none"] = counts.get(held.tier or "none", 0) + 1
        return counts

    def _tell_suspect(self) -> None:
        """Tells of the next pin that an engine may have died of, unless another one of them is being made resident."""
        suspects = [entry for entry in self._entries.values() if entry.crashes and not entry.settled]
        for entry in suspects:
            if any(other.told for other in suspects):
                return
            self._tell(entry)

    def _tell(self, entry: _Entry) -> None:
        if self._link is None or self._ready is None:
            return
        entry.problem = _why_not(entry, self._ready)
        if entry.problem:
            log.warning("a pinned prefix is left out", pin=entry.pin.id, problem=entry.problem)
        else:
            entry.told = True
            self._link.pin(PinnedPrefix(entry.pin.id, list(entry.pin.token_ids), entry.pin.cache_salt))


def _why_not(entry: _Entry, ready: Ready) -> str:
    """Why this engine must not be told of the pin; "" when it may."""
    ids = entry.pin.token_ids
    if not ids or max(ids) >= ready.vocab_size:
        return "other_model"
    if len(ids) >= ready.max_model_len:
        return "too_long"
    if len(ids) < ready.block_size:
        return "too_short"
    return "engine_died" if entry.crashes >= _MOST_CRASHES else ""


def _held(entry: _Entry) -> HeldPin:
    state, hits = entry.state, entry.all_hits
    if entry.problem or state is None:
        return HeldPin(id=entry.pin.id, hits=hits, problem=entry.problem)
    return HeldPin(
        id=entry.pin.id, tier=state.tier, blocks=state.blocks, bytes=state.bytes, hits=hits, problem=state.problem
    )
