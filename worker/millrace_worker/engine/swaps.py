"""The KV of preempted sequences: copied to host memory before its blocks are given away."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .block_copies import BlockCopies, Copy
from .host_tier import HostTier
from .load_costs import LoadCosts
from .prefix_cache import ChainHasher
from .sequence import Sequence
from .side_by_side import side_by_side


@dataclass(frozen=True, slots=True)
class _Swap:
    """Blocks on their way out, in slots that are held."""

    seq_id: int
    hashes: list[bytes]
    slots: list[int]
    copy: Copy


class Swaps:
    """What preempted sequences have in the CPU tier is held until they run again, or are gone."""

    def __init__(self, copies: BlockCopies, host: HostTier, costs: LoadCosts, block_size: int) -> None:
        self._copies, self._host, self._costs, self._block_size = copies, host, costs, block_size
        self._hasher = ChainHasher(block_size)
        self._leaving: list[_Swap] = []
        #: Hashes of these.
        self._hashes: set[bytes] = set()
        #: Slots held for preempted sequences, and hashes of what is there only for them, by seq_id.
        self._held: dict[int, list[int]] = {}
        self._only_for: dict[int, list[bytes]] = {}
        self.num_blocks = 0
        #: Sequences whose copies are done.
        self.num_ended = 0

    @property
    def held_slots(self) -> Iterable[list[int]]:
        yield from (swap.slots for swap in self._leaving)
        yield from self._held.values()

    @property
    def is_busy(self) -> bool:
        """Whether something is being copied."""
        return bool(self._leaving)

    def is_leaving(self, chain_hash: bytes) -> bool:
        return chain_hash in self._hashes

    def preempted(self, seq: Sequence, num_computed: int) -> None:
        """Copies full blocks of a sequence out that is about to lose them, if fetching them is quicker than computing.

        Nobody holds the blocks meanwhile: what overwrites them is launched later, and comes after the copy.
        """
        size = self._block_size
        full = min(num_computed, seq.num_tokens - 1) // size
        self._hasher.extend(seq, full)
        hashes = seq.block_hashes[:full]
        there = self._host.hold(hashes)
        missing = [
            i for i in range(len(there), full) if not self._host.has(hashes[i]) and hashes[i] not in self._hashes
        ]
        if missing and self._is_worth_it(len(missing)):
            slots = self._host.take(len(missing))
            missing = missing[: len(slots)]
            if missing:
                self._begin(seq, missing, slots)
        self._held[seq.seq_id] = there

    def poll(self) -> None:
        """Takes in what was copied."""
        if not self._leaving:
            return
        done = [swap for swap in self._leaving if swap.copy.is_done]
        self._leaving = [swap for swap in self._leaving if swap not in done]
        self.num_ended += len(done)
        for swap in done:
            for slot, block_hash in zip(swap.slots, swap.hashes, strict=True):
                self._host.put(slot, block_hash)
            self._hashes.difference_update(swap.hashes)
            self._costs.observe_read("cpu", len(swap.slots) * self._copies.block_bytes, swap.copy.seconds)
            if swap.seq_id in self._held:
                self._held[swap.seq_id] += swap.slots
            else:
                self._host.release(swap.slots)
                self._host.age(swap.hashes)

    def ended(self, seq: Sequence) -> None:
        """The sequence runs again, or is gone: what was there only for it is given up before anything else."""
        self._host.release(self._held.pop(seq.seq_id, []))
        self._host.age(self._only_for.pop(seq.seq_id, []))

    def _is_worth_it(self, count: int) -> bool:
        seconds = self._costs.read_seconds("cpu", 2 * count * self._copies.block_bytes)
        recompute = self._costs.recompute_seconds(count * self._block_size)
        return seconds is None or recompute is None or seconds < recompute

    def _begin(self, seq: Sequence, numbers: list[int], slots: list[int]) -> None:
        blocks, hashes = [seq.block_table[i] for i in numbers], [seq.block_hashes[i] for i in numbers]
        slots = side_by_side(blocks, slots)
        copy = self._copies.to_host(blocks, [self._host.slot(slot) for slot in slots])
        copy.keep_before_steps()
        self._leaving.append(_Swap(seq.seq_id, hashes, slots, copy))
        self._hashes.update(hashes)
        self._only_for[seq.seq_id] = hashes
        self.num_blocks += len(blocks)
