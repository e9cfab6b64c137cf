"""One pinned prefix, as the engine sees it."""

from __future__ import annotations

from millrace_worker.frames import PinnedPrefix, SequenceParams

from .prefix_cache import block_hash, root_of
from .sequence import OWN, Sequence

#: Why a pin is not resident. The first two pass; with the others it never will be.
NO_ROOM, GAVE_WAY = "no_room", "gave_way"
TOO_SHORT, BAD_TOKENS, OFF = "too_short", "bad_tokens", "off"

#: A resident pin is offered to the lower tiers so often until they have it, after as many seconds, doubled each time:
#: a disk takes so much at once, and not at all times.
_OFFERS = 8
_FIRST_OFFER_SECONDS = 1.0


class Pin:
    """Its names, its blocks while they are held, and what comes next for it. Times are of the clock of Pins."""

    __slots__ = (
        "_next_pause",
        "_offers",
        "_params",
        "_tokens",
        "blocks",
        "hashes",
        "hits",
        "next_offer",
        "next_try",
        "own",
        "pin_id",
        "problem",
        "used",
        "was_tried",
    )

    def __init__(self, prefix: PinnedPrefix, tokens: list[int], block_size: int) -> None:
        """`tokens`: those of its prefix that count."""
        self.pin_id = prefix.pin_id
        #: Chain hashes of its full blocks.
        self.hashes: list[bytes] = []
        parent, end = root_of(prefix.cache_salt), len(tokens) // block_size * block_size
        for start in range(0, end, block_size):
            parent = block_hash(parent, tokens[start : start + block_size])
            self.hashes.append(parent)
        # One more than the full blocks: the last token of a prompt is always computed, whatever is cached.
        self._tokens = [*tokens, *tokens[-1:]][: end + 1]
        self._params = SequenceParams(max_tokens=1, temperature=0.0, cache_salt=prefix.cache_salt, marked=True)
        #: As held; empty: they are not.
        self.blocks: list[int] = []
        #: Seq_id of the sequence that brings it into the pool, while there is one.
        self.own: int | None = None
        self.hits = 0
        #: Position in the order of use.
        self.used = 0
        self.problem = ""
        #: Whether it was resident, or such a sequence has ended.
        self.was_tried = False
        self.next_try = self.next_offer = 0.0
        self._offers, self._next_pause = 0, 0.0

    @property
    def is_hopeless(self) -> bool:
        return self.problem in (TOO_SHORT, BAD_TOKENS, OFF)

    def sequence(self, seq_id: int) -> Sequence:
        """One that needs all of its full blocks, and one token."""
        seq = Sequence(seq_id, self._tokens, [], self._params, OWN)
        seq.block_hashes = list(self.hashes)
        return seq

    def holder(self) -> Sequence:
        """A sequence, of no scheduler, that has the blocks which are held."""
        seq = self.sequence(-1)
        seq.block_table = self.blocks
        return seq

    def begin_offers(self, now: float) -> None:
        """It is resident since now."""
        self._offers, self._next_pause = _OFFERS, _FIRST_OFFER_SECONDS
        self.next_offer = now + self._next_pause

    def offer_again(self, now: float) -> bool:
        """Whether it is to be offered now; sets the time of the next one."""
        self._offers -= 1
        self._next_pause *= 2
        self.next_offer = now + self._next_pause
        return self._offers >= 0
