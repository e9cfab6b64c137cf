"""A sequence: its tokens, how many of them have KV, and the blocks that hold it."""

from __future__ import annotations

from enum import Enum, auto

from millrace_worker.frames import SequenceParams

#: Priority, and rank, of sequences that somebody waits for. All others give way to them.
URGENT = 0
#: Those of the engine's own sequences, which keep pins in the cache: behind all others, and never moved up.
OWN = 1 << 30


class SequenceState(Enum):
    #: Holds no blocks; to be scheduled (again).
    WAITING = auto()
    #: Holds a row and blocks.
    RUNNING = auto()
    FINISHED = auto()


class Sequence:
    """One answer being made. How far it is computed while it runs, RowCounts says."""

    __slots__ = (
        "__weakref__",
        "awaits",
        "block_hashes",
        "block_table",
        "num_cached",
        "num_preempted",
        "num_prompt",
        "order",
        "params",
        "place",
        "priority",
        "rank",
        "row",
        "seq_id",
        "state",
        "tokens",
    )

    def __init__(
        self, seq_id: int, prompt: list[int], generated: list[int], params: SequenceParams, priority: int = 0
    ) -> None:
        self.seq_id = seq_id
        self.tokens = [*prompt, *generated]
        self.num_prompt = len(prompt)
        self.params = params
        #: As the front gave it, or OWN; URGENT is the interactive lane.
        self.priority = priority
        #: Lower runs first: the priority, until the sequence has been passed over too often and is moved up.
        self.rank = priority
        #: Position in the order of first admission; the youngest of the highest rank is preempted first.
        self.order = 0
        self.num_preempted = 0
        self.state = SequenceState.WAITING
        #: Prompt tokens that the prefix cache held when the sequence was first scheduled.
        self.num_cached: int | None = None
        self.block_table: list[int] = []
        #: Chain hashes of the full blocks of `tokens`, as far as they were needed.
        self.block_hashes: list[bytes] = []
        #: Position among those of its rank that wait.
        self.place = 0
        #: Hash of the block that another sequence computes and this one, which waits, does not start without.
        self.awaits: bytes | None = None
        #: Stable index into RowCounts and the runner's tables while RUNNING, else -1.
        self.row = -1

    @property
    def is_own(self) -> bool:
        """Whether the engine made it for itself: the front does not hear of it."""
        return self.seq_id < 0

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt
