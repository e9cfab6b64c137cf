"""Pinned prefixes: beginnings of prompts whose blocks are brought into the pool and kept there."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable

from millrace_worker.frames import PinnedPrefix, PinState

from .block_pool import BlockPool
from .lower_tier import LowerTier
from .pin import BAD_TOKENS, GAVE_WAY, NO_ROOM, OFF, TOO_SHORT, Pin
from .prefix_cache import block_hash
from .sequence import Sequence

#: Pins hold one block of so many at most. What they hold is lost to running sequences, and a batch that is smaller by a
#: quarter costs less than a quarter of the rate; a system prompt of 2,048 tokens is under 1 % of a large GPU's pool.
POOL_SHARE = 4
#: Own sequences at a time: each step looks at all that wait.
_AT_ONCE = 4
#: Seconds between two tries to bring a pin back; and between two choices of what is held, when not all can be.
_PAUSE = 5.0
#: Seconds after which it is looked whether jobs have brought what own sequences are for.
_LOOK_SECONDS = 1.0
#: Seconds between two reports of hits, and of all else while jobs run.
_REPORT_SECONDS = 1.0


class Pins:
    """The pins of an engine. Single-threaded, like the scheduler, between whose steps it works.

    What is missing of a pin is computed, or read from a lower tier, by a sequence of the engine's own. Once its full
    blocks are in the pool, a reference to each is held, so that they are not evicted. Where not all pins have room,
    those used last are held.
    """

    def __init__(
        self,
        pool: BlockPool,
        tier: LowerTier,
        block_size: int,
        *,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`enabled` False: there is no prefix cache, and nothing to keep."""
        self._pool, self._tier, self._block_size, self._enabled, self._clock = pool, tier, block_size, enabled, clock
        self._cap = pool.num_blocks // POOL_SHARE
        #: Sequences that began with a pin and did not find all of it, by reason.
        self.misses: Counter[str] = Counter()
        self._pins: dict[str, Pin] = {}
        #: Of those, by id: whose blocks are held, and who shall have them held and has no sequence of its own yet.
        self._held: dict[str, Pin] = {}
        self._missing: dict[str, Pin] = {}
        #: Held ones that lower tiers may not have yet.
        self._unkept: dict[str, Pin] = {}
        #: By seq_id of their own sequence.
        self._warming: dict[int, Pin] = {}
        #: How many pins have this block.
        self._blocks: Counter[bytes] = Counter()
        #: By the name of their last full block, and how many have so many of them.
        self._by_end: dict[bytes, list[Pin]] = {}
        self._lengths: Counter[int] = Counter()
        self._uses = self._last_id = 0
        self._choose_at, self._chosen_at = math.inf, -math.inf
        self._reported: list[PinState] = []
        self._reported_at = -math.inf
        #: What has changed since the last report: where a pin is, and its hits.
        self._moved = self._counted = False

    @property
    def held(self) -> Iterable[list[int]]:
        """Blocks that it holds a reference of, as tables."""
        return [pin.blocks for pin in self._held.values()]

    @property
    def num_own(self) -> int:
        """Sequences of its own that have not ended."""
        return len(self._warming)

    @property
    def has_news(self) -> bool:
        """Whether something has changed since the last report."""
        return self._moved or self._counted

    def pin(self, prefix: PinnedPrefix, *, bad: bool = False) -> None:
        """Keeps this prefix from now on; `bad`: it is no prompt of this model, and only reported as such."""
        if prefix.pin_id in self._pins:
            return
        pin = Pin(prefix, [] if bad else prefix.tokens, self._block_size)
        self._pins[prefix.pin_id] = pin
        self._moved = True
        if bad or not pin.hashes or not self._enabled:
            pin.problem = BAD_TOKENS if bad else OFF if pin.hashes else TOO_SHORT
            return
        self._note_use(pin)
        self._by_end.setdefault(pin.hashes[-1], []).append(pin)
        self._lengths[len(pin.hashes)] += 1
        new = [name for name in pin.hashes if name not in self._blocks]
        self._blocks.update(pin.hashes)
        self._tier.protect(new)
        self._choose_at = -math.inf

    def unpin(self, pin_id: str) -> int | None:
        """Forgets a pin, if it is there; its own sequence's id, which is to be aborted, if it has one."""
        pin = self._pins.pop(pin_id, None)
        if pin is None:
            return None
        self._moved = True
        if pin.is_hopeless:
            return None
        self._let_go(pin)
        self._missing.pop(pin_id, None)
        same = self._by_end[pin.hashes[-1]]
        same.remove(pin)
        if not same:
            del self._by_end[pin.hashes[-1]]
        self._lengths -= Counter((len(pin.hashes),))
        gone = [name for name in pin.hashes if self._blocks[name] == 1]
        self._blocks.subtract(pin.hashes)
        for name in gone:
            del self._blocks[name]
        self._tier.unprotect(gone)
        self._choose_at = -math.inf
        if pin.own is not None:
            del self._warming[pin.own]
        return pin.own

    def give_way(self) -> bool:
        """Lets go of the blocks of the held pin that was not used for longest; False: there is none."""
        if not self._held:
            return False
        pin = min(self._held.values(), key=lambda pin: pin.used)
        self._let_go(pin)
        pin.problem, pin.next_try = GAVE_WAY, self._clock() + _PAUSE
        self._missing[pin.pin_id] = pin
        return True

    def let_go_all(self) -> None:
        """Lets go of all blocks, for now."""
        while self.give_way():
            pass

    def started(self, seq: Sequence, num_hits: int) -> None:
        """A sequence runs for the first time, on so many blocks that were there: a hit or miss of its pins."""
        if seq.is_own or not self._pins:
            return
        for pin in self._beginnings(seq):
            # The last token is always computed, and so is its block.
            if num_hits >= min(len(pin.hashes), (seq.num_tokens - 1) // self._block_size):
                pin.hits += 1
            else:
                self.misses[pin.problem or self._why_missing(pin.hashes[num_hits])] += 1
            self._note_use(pin)
            self._counted = True
            if pin.problem == NO_ROOM:
                self._choose_at = min(self._choose_at, self._chosen_at + _PAUSE)

    def wanted(self, *, idle: bool) -> tuple[list[Sequence], list[int]]:
        """Takes hold of what has come into the pool, by whomever. `idle`: there are no jobs.

        Returns sequences of its own to be added for what has not, and ids of those that are to be aborted.
        """
        now = self._clock()
        if now >= self._choose_at:
            self._choose()
        for pin in [pin for pin in self._unkept.values() if now >= pin.next_offer]:
            if self._tier.keeps(pin.hashes) or not pin.offer_again(now):
                del self._unkept[pin.pin_id]
            else:
                self._tier.computed(pin.holder(), 0, len(pin.hashes))
        done = [seq_id for seq_id, pin in self._warming.items() if now >= pin.next_try and self._was_quicker(pin, now)]
        for seq_id in done:
            self._warming.pop(seq_id).own = None
        new: list[Sequence] = []
        for pin in [pin for pin in self._missing.values() if now >= pin.next_try]:
            if self._hold(pin):
                continue
            if len(self._warming) >= _AT_ONCE:
                pin.next_try = now if idle else now + _LOOK_SECONDS
            elif pin.was_tried and not idle:
                pin.next_try = now + _PAUSE
            else:
                self._last_id -= 1
                pin.own, pin.next_try = self._last_id, now + _LOOK_SECONDS
                self._warming[pin.own] = pin
                del self._missing[pin.pin_id]
                new.append(pin.sequence(pin.own))
        return new, done

    def ended(self, seq_id: int) -> None:
        """A sequence of its own ended: all that it is for was in the pool a moment ago."""
        pin = self._warming.pop(seq_id)
        pin.own, pin.was_tried, pin.next_try = None, True, self._clock() + _PAUSE
        if pin.problem != NO_ROOM:
            self._missing[pin.pin_id] = pin
            self._hold(pin)

    def rest(self) -> float | None:
        """Seconds for which there is nothing to do as long as there are no jobs; None: for ever."""
        if self._moved:
            return 0.0
        now = self._clock()
        times = [pin.next_try for pin in self._missing.values()] + [pin.next_offer for pin in self._unkept.values()]
        times.append(self._reported_at + _REPORT_SECONDS if self._counted else math.inf)
        until = min(*times, self._choose_at)
        return None if until == math.inf else max(0.0, until - now)

    def report(self, block_bytes: int, *, idle: bool) -> list[PinState] | None:
        """All pins, when something has changed and it is time to tell; a block takes so many bytes.

        That is at once when an idle engine has moved one, which somebody may wait for.
        """
        now = self._clock()
        if not self.has_news or (now < self._reported_at + _REPORT_SECONDS and not (idle and self._moved)):
            return None
        self._moved, self._counted, self._reported_at = False, False, now
        states = [self._state(pin, block_bytes) for pin in self._pins.values()]
        if states == self._reported:
            return None
        self._reported = states
        return states

    def _state(self, pin: Pin, block_bytes: int) -> PinState:
        in_pool = pin.hashes and (pin.blocks or self._lookup(pin))
        tier = "gpu" if in_pool else self._tier.tier_of(pin.hashes) if pin.hashes else ""
        return PinState(pin.pin_id, tier, len(pin.hashes), len(pin.hashes) * block_bytes, pin.hits, pin.problem)

    def _lookup(self, pin: Pin) -> list[int] | None:
        blocks: list[int] = []
        for name in pin.hashes:
            block = self._pool.lookup(name)
            if block is None:
                return None
            blocks.append(block)
        return blocks

    def _beginnings(self, seq: Sequence) -> list[Pin]:
        """Pins that the sequence begins with: all full blocks of theirs are its own, too."""
        found: list[Pin] = []
        hashes, size = seq.block_hashes, self._block_size
        for length in self._lengths:
            if length <= len(hashes):
                found += self._by_end.get(hashes[length - 1], ())
            elif length == len(hashes) + 1 and seq.num_tokens == length * size and hashes:
                # The prompt is the pin itself, to the last token.
                found += self._by_end.get(block_hash(hashes[-1], seq.tokens[-size:]), ())
        return found

    def _why_missing(self, name: bytes) -> str:
        reason = self._tier.why_not(name)
        return "warming" if reason in ("", "absent") else reason

    def _was_quicker(self, pin: Pin, now: float) -> bool:
        """Whether jobs have computed it: its own sequence comes behind them all, and may wait for long."""
        pin.next_try = now + _LOOK_SECONDS
        return pin.problem != NO_ROOM and self._hold(pin)

    def _note_use(self, pin: Pin) -> None:
        self._uses += 1
        pin.used = self._uses

    def _choose(self) -> None:
        """Those used last are to be held, as far as there is room; all others are let go."""
        self._choose_at, self._chosen_at = math.inf, self._clock()
        self._missing = {}
        taken: set[bytes] = set()
        for pin in sorted(self._pins.values(), key=lambda pin: -pin.used):
            if pin.is_hopeless:
                continue
            more = [name for name in pin.hashes if name not in taken]
            if len(taken) + len(more) > self._cap:
                if pin.problem != NO_ROOM:
                    self._let_go(pin)
                    pin.problem, self._moved = NO_ROOM, True
                continue
            taken.update(more)
            if pin.problem == NO_ROOM:
                pin.problem, self._moved = "", True
            if not pin.blocks and pin.own is None:
                self._missing[pin.pin_id] = pin

    def _hold(self, pin: Pin) -> bool:
        """Takes a reference of each block, if all are in the pool."""
        blocks = self._lookup(pin)
        if blocks is None:
            return False
        self._pool.share(blocks)
        pin.blocks, pin.problem, pin.was_tried = blocks, "", True
        self._missing.pop(pin.pin_id, None)
        self._held[pin.pin_id] = pin
        pin.begin_offers(self._clock())
        self._unkept[pin.pin_id] = pin
        self._moved = True
        return True

    def _let_go(self, pin: Pin) -> None:
        if pin.blocks:
            self._pool.release(reversed(pin.blocks))
            pin.blocks = []
            del self._held[pin.pin_id]
            self._unkept.pop(pin.pin_id, None)
            self._moved = True
