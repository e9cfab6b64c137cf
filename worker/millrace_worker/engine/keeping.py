"""Blocks on their way out of the pool: copied to host memory once, and from there to the disk."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog
import torch

from .block_copies import BlockCopies, Copy
from .block_pool import BlockPool
from .disk_requests import Writing
from .disk_tier import DiskTier
from .host_tier import HostTier
from .kv_record import BlockName
from .sequence import Sequence
from .side_by_side import side_by_side

log = structlog.get_logger()

#: Blocks are copied out in groups of at most so many bytes, and no faster than so many bytes a second while steps run:
#: more than a GPU computes, and little of what the link can do and of the time that a step's host has.
GROUP_BYTES = 32 * 2**20
_BYTES_PER_SECOND = 8e9


@dataclass(frozen=True, slots=True)
class _Outward:
    """Blocks of one prompt, held until they are copied; those with a name also go to the disk."""

    #: Of the prompt from its first block to the last of these.
    chain: list[bytes]
    hashes: list[bytes]
    names: list[BlockName | None]
    blocks: list[int]


@dataclass(frozen=True, slots=True)
class _Leaving:
    """Some of them, being copied: the first into slots, which are held, the others into buffers of their own."""

    wanted: _Outward
    #: Which.
    chosen: list[int]
    slots: list[int]
    copy: Copy


class Keeping:
    """What is kept of the blocks that the pool has, and where."""

    def __init__(
        self,
        pool: BlockPool,
        copies: BlockCopies,
        *,
        host: HostTier | None,
        disk: DiskTier | None,
        name: Callable[[Sequence, int], BlockName],
        unwritten: Counter[str],
    ) -> None:
        self._pool, self._copies, self._host, self._disk = pool, copies, host, disk
        self._name, self._unwritten = name, unwritten
        self._wanted: list[_Outward] = []
        self._outward: list[_Leaving] = []
        #: Hashes of the two above.
        self._hashes: set[bytes] = set()
        self._num_named = 0
        #: What the disk's thread still reads from slots.
        self._writing: list[tuple[Writing, list[int]]] = []
        self._flushed = time.monotonic()

    @property
    def held(self) -> Iterable[list[int]]:
        """Blocks of the pool, as tables."""
        return (wanted.blocks for wanted in (*self._wanted, *(leaving.wanted for leaving in self._outward)))

    @property
    def held_slots(self) -> Iterable[list[int]]:
        """Slots of the CPU tier."""
        yield from (leaving.slots for leaving in self._outward)
        yield from (slots for _, slots in self._writing)

    @property
    def is_busy(self) -> bool:
        """Whether anything is wanted that has not been copied."""
        return bool(self._wanted or self._outward)

    def is_leaving(self, chain_hash: bytes) -> bool:
        return chain_hash in self._hashes

    def keep(self, seq: Sequence, numbers: list[int]) -> bool:
        """Wants these blocks of a running sequence kept in every tier that has not got them; whether all have."""
        host, hashes = self._host, seq.block_hashes
        disk = self._disk if self._disk is not None and self._disk.index is not None else None
        if disk is None and host is None:
            return False
        to_disk = [] if disk is None else [i for i in numbers if not disk.has_or_will(hashes[i])]
        to_host = numbers if host is None else [i for i in numbers if not host.has(hashes[i])]
        if not to_disk and not (to_host if host is not None else ()):
            return disk is not None or self._disk is None
        to_disk = [i for i in to_disk if hashes[i] not in self._hashes]
        to_disk = to_disk[: self._room(disk, len(to_disk))]
        to_host = [i for i in to_host if hashes[i] not in self._hashes]
        on_disk = set(to_disk)
        if host is not None:
            self._write_held(seq, sorted(on_disk.difference(to_host)))
        else:
            to_host = to_disk
        group = max(1, GROUP_BYTES // self._copies.block_bytes)
        for start in range(0, len(to_host), group):
            self._want(seq, to_host[start : start + group], on_disk)
        return False

    def flush(self, *, all_of_it: bool = False) -> None:
        """Begins to copy out what is wanted: as much as the time since the last call allows, or all."""
        now = time.monotonic()
        allowed, self._flushed = (now - self._flushed) * _BYTES_PER_SECOND, now
        while self._wanted:
            wanted = self._wanted.pop(0)
            self._begin(wanted)
            allowed -= len(wanted.blocks) * self._copies.block_bytes
            if allowed <= 0 and not all_of_it:
                break
        self.take_copies()

    def give_back(self) -> None:
        """Lets go of all blocks of the pool at once: what was not begun is not kept."""
        for wanted in self._wanted:
            self._unwritten["no_room"] += len(wanted.blocks)
            self._let_go(wanted)
        self._wanted = []
        self.finish_copies()

    def finish_copies(self) -> None:
        """Waits for what is being copied."""
        for leaving in self._outward:
            leaving.copy.wait()
        self.take_copies()

    def take_copies(self) -> None:
        """Books the copies that are done, and lets go of their blocks."""
        if self._outward:
            done = [leaving for leaving in self._outward if leaving.copy.is_done]
            self._outward = [leaving for leaving in self._outward if leaving not in done]
            for leaving in done:
                self._copied(leaving)
        if self._writing and self._host is not None:
            left: list[tuple[Writing, list[int]]] = []
            for writing, slots in self._writing:
                if writing.is_done:
                    self._host.release(slots)
                else:
                    left.append((writing, slots))
            self._writing = left

    def _room(self, disk: DiskTier | None, count: int) -> int:
        """How many of so many blocks the disk takes; the others are counted."""
        if disk is None or count == 0:
            return 0
        room = max(0, disk.write_room - self._num_named)
        if count > room:
            self._unwritten["busy"] += count - room
        return room

    def _want(self, seq: Sequence, numbers: list[int], on_disk: set[int]) -> None:
        hashes = [seq.block_hashes[i] for i in numbers]
        names = [self._name(seq, i) if i in on_disk else None for i in numbers]
        blocks = [seq.block_table[i] for i in numbers]
        self._pool.share(blocks)
        self._hashes.update(hashes)
        self._num_named += len(on_disk.intersection(numbers))
        self._wanted.append(_Outward(seq.block_hashes[: numbers[-1] + 1], hashes, names, blocks))

    def _begin(self, wanted: _Outward) -> None:
        count = len(wanted.blocks)
        slots = [] if self._host is None else self._host.take(count)
        slots = side_by_side(wanted.blocks[: len(slots)], slots)
        # What has no slot goes to the disk all the same.
        chosen = [i for i in range(count) if i < len(slots) or wanted.names[i] is not None]
        self._unwritten["no_room"] += count - len(chosen)
        try:
            buffers = [] if self._host is None else [self._host.slot(slot) for slot in slots]
            buffers += self._copies.new_buffers(len(chosen) - len(slots))
            copy = self._copies.to_host([wanted.blocks[i] for i in chosen], buffers)
        except RuntimeError as e:
            log.warning("no host memory for blocks of the disk cache", reason=str(e).splitlines()[0])
            self._unwritten["no_memory"] += count
            if self._host is not None:
                self._host.release(slots)
            self._let_go(wanted)
            return
        self._outward.append(_Leaving(wanted, chosen, slots, copy))

    def _copied(self, leaving: _Leaving) -> None:
        wanted, slots, host = leaving.wanted, leaving.slots, self._host
        if host is not None:
            for slot, block_hash in zip(slots, wanted.hashes, strict=False):
                host.put(slot, block_hash)
        names: list[BlockName] = []
        buffers: list[torch.Tensor] = []
        written: list[int] = []
        for place, (index, buffer) in enumerate(zip(leaving.chosen, leaving.copy.host, strict=True)):
            name = wanted.names[index]
            if name is not None:
                names.append(name)
                buffers.append(buffer)
                written += slots[place : place + 1]
        if names:
            self._write(wanted.chain, names, buffers, written)
        if host is not None:
            host.release(slots)
            host.touch(wanted.chain)
        self._let_go(wanted)

    def _write_held(self, seq: Sequence, numbers: list[int]) -> None:
        """Has blocks written to the disk that the CPU tier has already."""
        host = self._host
        if not numbers or host is None:
            return
        slots = host.hold([seq.block_hashes[i] for i in numbers])
        names = [self._name(seq, i) for i in numbers]
        self._write(seq.block_hashes[: numbers[-1] + 1], names, [host.slot(slot) for slot in slots], slots)
        host.release(slots)

    def _write(self, chain: list[bytes], names: list[BlockName], buffers: list[torch.Tensor], slots: list[int]) -> None:
        """Gives blocks to the disk; their slots stay held until they are written."""
        assert self._disk is not None
        writing = Writing(chain, names, buffers)
        if slots and self._host is not None:
            self._host.share(slots)
            self._writing.append((writing, slots))
        self._disk.write(writing)

    def _let_go(self, wanted: _Outward) -> None:
        self._pool.release(reversed(wanted.blocks))
        self._hashes.difference_update(wanted.hashes)
        self._num_named -= sum(name is not None for name in wanted.names)
