"""KV blocks in host memory: which slot holds which, who uses it, and which is given up next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice

import torch

from .block_pool import BlockPool
from .disk_requests import Reading
from .host_arena import HostArena
from .kv_record import BlockName


class HostTier:
    """A store of the prefix cache. For the engine's thread alone; nothing here copies.

    Whoever copies from a slot or into it, or writes it to a disk, holds a reference until that is over: a slot
    without one may be given to another block at any time. Those not used for longest are given up first, tails before
    heads, and protected ones last.
    """

    name = "cpu"
    may_read = True
    #: Nobody waits for it in a queue of its own.
    reading_bytes = 0

    def __init__(self, arena: HostArena) -> None:
        self.record_bytes = arena.block_bytes
        self._arena = arena
        self._slots = BlockPool(arena.num_slots)
        #: Hashes, also of blocks that are not here.
        self._protected: set[bytes] = set()
        #: Slots of protected blocks, held for that, those not used for longest first.
        self._guarded: OrderedDict[bytes, int] = OrderedDict()

    @property
    def num_blocks(self) -> int:
        """Blocks that can be found."""
        return self._slots.num_named

    @property
    def used_bytes(self) -> int:
        return self._slots.num_named * self.record_bytes

    @property
    def is_open(self) -> bool:
        """Whether there is any memory."""
        return self._arena.num_slots > 0

    @property
    def read_room(self) -> int:
        """Blocks that may be read at once: any number, there is no buffer to be filled."""
        return self._slots.num_blocks

    def start(self) -> None:
        """Begins to take memory; see HostArena.start."""
        self._arena.start()
        self.grow()

    def close(self) -> None:
        self._arena.close()

    def grow(self) -> None:
        """Takes in the memory that has come meanwhile."""
        more = self._arena.num_slots - self._slots.num_blocks
        if more > 0:
            self._slots.grow(more)

    def wait_open(self, seconds: float) -> bool:
        """Whether by then all memory is there that it will have."""
        is_open = self._arena.wait_taken(seconds)
        self.grow()
        return is_open

    def has(self, chain_hash: bytes) -> bool:
        return self._slots.lookup(chain_hash) is not None

    def why_not(self, chain_hash: bytes) -> str:
        """Why `has` is false, for a counter."""
        return "absent"

    def slot(self, number: int) -> torch.Tensor:
        """[block_bytes] uint8."""
        return self._arena.slot(number)

    def take(self, count: int) -> list[int]:
        """So many slots, or as many as there are, in ascending order; each held, and without content to be found."""
        if self._slots.num_free < count and self._guarded:
            # Not even what is protected is kept where there is nothing else; but what others hold would free nothing.
            idle = (name for name, slot in self._guarded.items() if self._slots.references(slot) == 1)
            for name in list(islice(idle, count - self._slots.num_free)):
                self._slots.release([self._guarded.pop(name)])
        return sorted(self._slots.allocate(min(count, self._slots.num_free)))

    def put(self, slot: int, chain_hash: bytes) -> None:
        """What a held slot holds now."""
        self._slots.register(slot, chain_hash)
        if chain_hash in self._protected:
            self._guard([chain_hash])

    def hold(self, chain: Iterable[bytes]) -> list[int]:
        """Holds the slots of these blocks, in order, up to the first that is not here."""
        slots: list[int] = []
        for chain_hash in chain:
            slot = self._slots.lookup(chain_hash)
            if slot is None:
                break
            slots.append(slot)
        self._slots.share(slots)
        return slots

    def share(self, slots: list[int]) -> None:
        """Holds held slots once more."""
        self._slots.share(slots)

    def release(self, slots: list[int]) -> None:
        """Lets go of held slots, given in the order of a prompt."""
        self._slots.release(reversed(slots))

    def read(self, names: list[BlockName], into: list[torch.Tensor | None]) -> Reading:
        """These blocks, which are here; the caller holds their slots until they are copied."""
        reading = Reading(names, into)
        reading.buffers = into
        reading.is_done = True
        return reading

    def give_up(self, reading: Reading, *, leave_alone: bool = True) -> None:
        """Nothing of what was read is wanted."""
        reading.end = 0

    def touch(self, chain: list[bytes]) -> None:
        """Blocks of one prompt, from its first on, were used, wherever they were found."""
        slots = self._find(chain)
        self._slots.share(slots)
        self.release(slots)
        if self._protected:
            self._guard([chain_hash for chain_hash in chain if chain_hash in self._protected])

    def age(self, chain: list[bytes]) -> None:
        """Of these blocks those that nobody holds are given up first."""
        self._slots.age(self._find(chain))

    def forget_all(self) -> None:
        """Nothing can be found any more; what is held stays with its owners. For benchmarks."""
        self._slots.release(self._guarded.values())
        self._guarded.clear()
        self._slots.forget_all()

    def protect(self, chain: list[bytes]) -> None:
        """These blocks are given up last, those too that are not here yet."""
        self._protected.update(chain)
        self._guard(chain)

    def unprotect(self, chain: list[bytes]) -> None:
        """They are blocks like others again."""
        self._protected.difference_update(chain)
        self.release([self._guarded.pop(chain_hash) for chain_hash in chain if chain_hash in self._guarded])

    def check_integrity(self, held: Iterable[list[int]]) -> None:
        """Asserts that slots in use are those of `held`. For tests."""
        self._slots.check_integrity([*held, list(self._guarded.values())])

    def _guard(self, chain: list[bytes]) -> None:
        # Tails are given up before heads, so they are the first.
        for chain_hash in reversed(chain):
            slot = self._slots.lookup(chain_hash)
            if slot is None:
                continue
            if chain_hash not in self._guarded:
                self._slots.share([slot])
                self._guarded[chain_hash] = slot
            self._guarded.move_to_end(chain_hash)

    def _find(self, chain: Iterable[bytes]) -> list[int]:
        found = (self._slots.lookup(chain_hash) for chain_hash in chain)
        return [slot for slot in found if slot is not None]
