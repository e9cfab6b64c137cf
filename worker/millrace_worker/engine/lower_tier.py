"""What the scheduler asks of a tier below the GPU's memory, in ids and counts."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto
from typing import Protocol

from millrace_worker.cache_stats import CacheStats

from .sequence import Sequence


class Wait(Enum):
    """Why a sequence that could start now does not."""

    #: It starts.
    NONE = auto()
    #: What it waits for is on its way: there will be news, and until then it need not be asked again.
    NEWS = auto()
    #: Blocks were fetched for it, and there is no room for them until those go that have to for it: see `place`.
    ROOM = auto()
    #: Blocks are to be fetched for it, but not before others have started: to be asked again in the next step.
    TURN = auto()


class LowerTier(Protocol):
    """Prompts' blocks outside of the block pool. It holds references of blocks while they are copied."""

    @property
    def held(self) -> Iterable[list[int]]:
        """Blocks that it holds a reference of, as tables."""

    @property
    def news(self) -> int:
        """How often something that sequences are held back for was there, or given up: never less than before."""

    def ahead(self, rank: int) -> tuple[int, int]:
        """Sequences that were held back and have not started yet, of this rank and lower ones.

        How many, and how many blocks that are free they will take.
        """

    def hold_back(self, seq: Sequence, num_hits: int, *, may_load: bool) -> Wait:
        """Whether `seq`, which could start now or once others go for it, waits for blocks after its first `num_hits`.

        Unless `may_load`, nothing is fetched for it while something is on its way for others.
        """

    def place(self, seq: Sequence) -> None:
        """There is room now for what was fetched for it; it waits for news."""

    def started(self, seq: Sequence, num_hits: int, *, first: bool) -> dict[str, int]:
        """`seq` runs now, on so many blocks that were there; `first`: for the first time.

        Returns which of its prompt's tokens came from which lower tier, when it is the first time.
        """

    def computed(self, seq: Sequence, first: int, end: int) -> None:
        """These blocks of a running sequence are full and computed."""

    def preempted(self, seq: Sequence, num_computed: int) -> None:
        """`seq` is about to lose its blocks; of so many tokens they hold the KV once all launched steps are done."""

    def gone(self, seq: Sequence) -> None:
        """`seq` ended, running or waiting."""

    def give_back(self) -> None:
        """Lets go of all blocks at once."""

    @property
    def is_copying(self) -> bool:
        """Whether blocks are still to be copied out, or on their way."""

    def settle(self) -> None:
        """Begins all copies that are wanted, and waits for them. While nothing runs."""

    def poll(self) -> None:
        """Takes in what was read and copied meanwhile. Before a step is scheduled."""

    def flush(self) -> None:
        """Copies out what is to be kept. After a step was launched."""

    def wait(self, seconds: float) -> None:
        """Until something that was being read is there, but no longer than that."""

    def observe_step(self, prompt_tokens: int, other_tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""

    def protect(self, chain: list[bytes]) -> None:
        """These blocks are kept at the first sighting, and dropped after all that are not protected."""

    def unprotect(self, chain: list[bytes]) -> None:
        """They are blocks like others again."""

    def tier_of(self, chain: list[bytes]) -> str:
        """The fastest tier that has all of these blocks; "" while none has."""

    def keeps(self, chain: list[bytes]) -> bool:
        """Whether all of these blocks will outlive the engine, as far as any can."""

    def why_not(self, chain_hash: bytes) -> str:
        """Why no tier has this block, for a counter; "" when one has it, or there is none."""

    def close(self) -> None:
        """Ends it, after what is still to be written."""

    def check_integrity(self) -> None:
        """Asserts that what it holds is in use. For tests and idle moments."""

    @property
    def stats(self) -> CacheStats: ...


class NoLowerTier:
    """There is none."""

    held: Iterable[list[int]] = ()
    news = 0
    is_copying = False
    stats = CacheStats()

    def ahead(self, rank: int) -> tuple[int, int]:
        return 0, 0

    def hold_back(self, seq: Sequence, num_hits: int, *, may_load: bool) -> Wait:
        return Wait.NONE

    def place(self, seq: Sequence) -> None: ...

    def started(self, seq: Sequence, num_hits: int, *, first: bool) -> dict[str, int]:
        return {}

    def computed(self, seq: Sequence, first: int, end: int) -> None: ...

    def preempted(self, seq: Sequence, num_computed: int) -> None: ...

    def gone(self, seq: Sequence) -> None: ...

    def give_back(self) -> None: ...

    def settle(self) -> None: ...

    def poll(self) -> None: ...

    def flush(self) -> None: ...

    def wait(self, seconds: float) -> None: ...

    def observe_step(self, prompt_tokens: int, other_tokens: int, seconds: float) -> None: ...

    def protect(self, chain: list[bytes]) -> None: ...

    def unprotect(self, chain: list[bytes]) -> None: ...

    def tier_of(self, chain: list[bytes]) -> str:
        return ""

    def keeps(self, chain: list[bytes]) -> bool:
        return True

    def why_not(self, chain_hash: bytes) -> str:
        return ""

    def close(self) -> None: ...

    def check_integrity(self) -> None: ...
