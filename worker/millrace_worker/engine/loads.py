"""Blocks on their way into the pool: read from the tiers below it, then copied to the device."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice

import torch

from .ahead import Ahead
from .block_copies import BlockCopies
from .block_pool import BlockPool
from .disk_requests import Reading
from .disk_tier import DiskTier
from .host_tier import HostTier
from .kv_record import BlockName
from .load import Inward, Load, Part
from .load_costs import LoadCosts
from .load_plan import LoadPlan, Store
from .sequence import URGENT, Sequence
from .side_by_side import side_by_side

#: A read may take so many times what it should.
_TIMES_ESTIMATE = 3.0
#: Seconds after which a copy is looked at again while there is nothing else to do.
_GLANCE = 0.0001


class Loads:
    """What waiting sequences are fetched of their prompts. It holds blocks and slots of whatever is copied."""

    def __init__(
        self,
        pool: BlockPool,
        copies: BlockCopies,
        costs: LoadCosts,
        *,
        block_size: int,
        host: HostTier | None,
        disk: DiskTier | None,
        misses: Counter[str],
    ) -> None:
        self._pool, self._copies, self._costs, self._block_size = pool, copies, costs, block_size
        self._host, self._disk, self._misses = host, disk, misses
        #: By seq_id.
        self._loads: dict[int, Load] = {}
        self._inward: list[Inward] = []
        #: Of urgent sequences, which others make room for when they could start: what was read; by seq_id.
        self._unplaced: dict[int, tuple[Load, list[torch.Tensor]]] = {}
        #: Waiting sequences whose blocks are being read or copied in, by seq_id.
        self._held_back: set[int] = set()
        #: Hashes that are being read or copied in.
        self._loading: set[bytes] = set()
        #: The tiers that blocks came from, by hash, for a sequence that has not started yet; by seq_id.
        self._read_for: dict[int, dict[bytes, str]] = {}
        #: What threads may still fill, though nobody waits for it, with the slots for it.
        self._abandoned: list[tuple[Reading, list[int]]] = []
        #: Those that have not started.
        self.ahead = Ahead()
        self.copying_bytes = 0
        #: Loads that have ended, one way or another, or lack room.
        self.num_ended = 0

    @property
    def held(self) -> Iterable[list[int]]:
        """Blocks of the pool, as tables."""
        return ([*inward.heads, *inward.copy.blocks] for inward in self._inward)

    @property
    def held_slots(self) -> Iterable[list[int]]:
        """Slots of the CPU tier."""
        unplaced = (load for load, _ in self._unplaced.values())
        loads = (*self._loads.values(), *(inward.load for inward in self._inward), *unplaced)
        yield from (part.slots for load in loads for part in load.parts)
        yield from (slots for _, slots in self._abandoned)

    @property
    def num_copying(self) -> int:
        """Blocks of the pool that something is copied to."""
        return self.copying_bytes // self._copies.block_bytes

    @property
    def is_busy(self) -> bool:
        """Whether anything is on its way."""
        return bool(self._loads or self._inward)

    def is_held_back(self, seq: Sequence) -> bool:
        return seq.seq_id in self._held_back

    def lacks_room(self, seq: Sequence) -> bool:
        """Whether its blocks were read, and the pool had too few for them."""
        return seq.seq_id in self._unplaced

    def place(self, seq: Sequence) -> None:
        """Copies what was read into the pool, as far as there is room now."""
        load, good = self._unplaced.pop(seq.seq_id)
        self._held_back.add(seq.seq_id)
        self._copy_in(load, good)

    def is_loading(self, chain_hash: bytes) -> bool:
        return chain_hash in self._loading

    def begin(self, seq: Sequence, first: int, plan: LoadPlan, name: Callable[[Sequence, int], BlockName]) -> None:
        """Fetches what the plan says for blocks from `first` on, whose names `name` knows."""
        now = time.monotonic()
        numbers = iter(range(first, first + plan.count))
        wanted = [(part.store, [name(seq, number) for number in islice(numbers, part.count)]) for part in plan.segments]
        parts = self._read(wanted)
        seconds = plan.most_seconds
        if seconds is None:
            least = 0.0 if self._disk is None else self._disk.limits.read_seconds
            seconds = max(least, _TIMES_ESTIMATE * plan.seconds)
        is_trial = plan.most_seconds is not None
        load = Load(seq, seq.block_hashes[:first], parts, now, now + seconds, is_trial)
        self._held_back.add(seq.seq_id)
        self.ahead.add(seq, -(-seq.num_tokens // self._block_size) - first)
        self._loading.update(load.hashes)
        if load.is_done:
            self._place(load)
        else:
            self._loads[seq.seq_id] = load

    def take_tiers(self, seq: Sequence) -> dict[bytes, str]:
        """It starts: which tier each block came from that was fetched for it."""
        self.ahead.remove(seq)
        return self._read_for.pop(seq.seq_id, {})

    def gone(self, seq: Sequence) -> None:
        """The sequence ended. What is being copied for it is kept."""
        self.ahead.remove(seq)
        self._read_for.pop(seq.seq_id, None)
        self._held_back.discard(seq.seq_id)
        load = self._loads.pop(seq.seq_id, None)
        if load is not None:
            for part in load.parts:
                part.reading.end = 0
                self._let_go(part, 0)
            self._end(load)
        if seq.seq_id in self._unplaced:
            load, _ = self._unplaced.pop(seq.seq_id)
            self._give_up(load)

    def poll(self) -> None:
        """Begins to copy what was read, and takes in what was copied."""
        if self._loads:
            now = time.monotonic()
            for load in list(self._loads.values()):
                if load.is_done or now > load.deadline:
                    del self._loads[load.seq.seq_id]
                    self._place(load)
        self.take_copies()
        if self._abandoned and self._host is not None:
            abandoned, self._abandoned = self._abandoned, []
            for reading, slots in abandoned:
                # Looked at once: its thread may end it at any moment, and slots are given back once.
                if reading.is_done:
                    self._host.release(slots)
                else:
                    self._abandoned.append((reading, slots))

    def finish_copies(self) -> None:
        """Waits for what is being copied."""
        for inward in self._inward:
            inward.copy.wait()
        self.take_copies()

    def wait(self, seconds: float) -> None:
        """Until something is there for `poll`, but no longer than that."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            loads = self._loads.values()
            if any(inward.copy.is_done for inward in self._inward) or any(load.is_done for load in loads):
                return
            if self._inward:
                time.sleep(min(_GLANCE, left))
            elif self._loads and self._disk is not None:
                self._disk.wait(left)
            else:
                return

    def take_copies(self) -> None:
        """Makes the blocks findable whose copies are done, and lets go of them."""
        if self._inward:
            done = [inward for inward in self._inward if inward.copy.is_done]
            self._inward = [inward for inward in self._inward if inward not in done]
            for inward in done:
                self._arrived(inward)

    def _read(self, wanted: list[tuple[Store, list[BlockName]]]) -> list[Part]:
        host = self._host
        # First what is there is held: room for the others may otherwise be made of it.
        held = {
            number: host.hold([name.chain_hash for name in names])
            for number, (store, names) in enumerate(wanted)
            if host is not None and store is host
        }
        parts: list[Part] = []
        for number, (store, names) in enumerate(wanted):
            slots = held.get(number)
            if slots is None:
                # What is read from below stays here.
                slots = [] if host is None else host.take(len(names))
            into: list[torch.Tensor | None] = [None] * len(names)
            if host is not None:
                into[: len(slots)] = [host.slot(slot) for slot in slots]
            parts.append(Part(store, store.read(names, into), slots))
        return parts

    def _place(self, load: Load) -> None:
        good, seq = self._good(load), load.seq
        room = self._pool.num_free - sum(map(self._pool.is_free, self._heads(load)))
        if len(good) > room and seq.rank == URGENT:
            self._unplaced[seq.seq_id] = load, good
            self._held_back.discard(seq.seq_id)
            self.num_ended += 1
        else:
            self._copy_in(load, good)

    def _copy_in(self, load: Load, good: list[torch.Tensor]) -> None:
        """Gives what was read blocks of the pool, and begins to copy it there."""
        # What the sequence has in the pool is not given up for what comes after it, nor for others meanwhile.
        heads = self._heads(load)
        self._pool.share(heads)
        good = good[: self._pool.num_free]
        blocks = side_by_side([buffer.data_ptr() for buffer in good], self._pool.allocate(len(good)))
        if blocks:
            self.copying_bytes += len(blocks) * self._copies.block_bytes
            self._inward.append(Inward(load, heads, self._copies.to_device(blocks, good)))
        else:
            self._pool.release(reversed(heads))
            self._give_up(load)

    def _heads(self, load: Load) -> list[int]:
        """Blocks of the pool that hold what comes before it."""
        found = (self._pool.lookup(block_hash) for block_hash in load.heads)
        return [block for block in found if block is not None]

    def _good(self, load: Load) -> list[torch.Tensor]:
        """What was read in time, up to the first block that was not; and what is to be learnt from it."""
        good: list[torch.Tensor] = []
        whole = True
        for part in load.parts:
            reading, store = part.reading, part.store
            size = store.record_bytes
            if not reading.is_done:
                self._misses["deadline"] += 1
                store.give_up(reading, leave_alone=not load.is_trial)
                # That it is slow is to be learnt, too.
                self._costs.observe_read(store.name, max(1, len(reading.good)) * size, time.monotonic() - load.began)
            elif reading.reason is not None:
                self._misses[reading.reason] += 1
            elif store is not self._host:
                self._costs.observe_read(store.name, len(reading.names) * size, reading.seconds)
            if whole:
                good += reading.good
                whole = len(reading.good) == len(reading.names)
        return good

    def _arrived(self, inward: Inward) -> None:
        load, blocks = inward.load, inward.copy.blocks
        num_bytes = len(blocks) * self._copies.block_bytes
        self.copying_bytes -= num_bytes
        self._costs.observe_read("cpu", num_bytes, inward.copy.seconds)
        inward.copy.keep_before_steps()
        hashes = load.hashes[: len(blocks)]
        for block, block_hash in zip(blocks, hashes, strict=True):
            self._pool.register(block, block_hash)
        self._pool.release(reversed([*inward.heads, *blocks]))
        if load.seq.seq_id in self._held_back:
            tiers = [part.store.name for part in load.parts for _ in part.reading.names]
            self._read_for.setdefault(load.seq.seq_id, {}).update(zip(hashes, tiers, strict=False))
        for part in load.parts:
            self._let_go(part, len(part.reading.good))
        if self._host is not None:
            self._host.touch([*load.heads, *hashes])
        self._end(load)

    def _let_go(self, part: Part, count: int) -> None:
        """Keeps the first `count` blocks of a part in the CPU tier, and gives back its slots once nobody fills them."""
        if self._host is None:
            return
        if part.store is not self._host:
            for slot, name in zip(part.slots, part.reading.names[:count], strict=False):
                self._host.put(slot, name.chain_hash)
        if part.reading.is_done:
            self._host.release(part.slots)
        else:
            self._abandoned.append((part.reading, part.slots))

    def _give_up(self, load: Load) -> None:
        """Nothing of it is copied; the CPU tier keeps what was read."""
        for part in load.parts:
            self._let_go(part, len(part.reading.good))
        self._end(load)

    def _end(self, load: Load) -> None:
        self.num_ended += 1
        self._held_back.discard(load.seq.seq_id)
        self._loading.difference_update(load.hashes)
