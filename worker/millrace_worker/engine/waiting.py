"""The sequences that wait: in which order, and when one is moved up before its rank's turn."""

from __future__ import annotations

from collections import deque

from .sequence import URGENT, Sequence


class Waiting:
    """Queues by rank.

    A sequence behind the urgent ones is made one of them once `most_overtakes` of these were started while it was the
    first to wait, or once it was preempted `most_preemptions` times.
    """

    def __init__(self, *, most_overtakes: int, most_preemptions: int) -> None:
        self._most_overtakes, self._most_preemptions = most_overtakes, most_preemptions
        self._queues: dict[int, deque[Sequence]] = {URGENT: deque()}
        #: Urgent sequences started since one of another rank was, while one waited.
        self._overtakes = 0

    @property
    def ranks(self) -> list[int]:
        """Those that there have been, the lowest first."""
        return list(self._queues)

    def queue(self, rank: int) -> deque[Sequence]:
        """Those of this rank, in the order in which they start."""
        queue = self._queues.get(rank)
        if queue is None:
            self._queues[rank] = queue = deque()
            self._queues = dict(sorted(self._queues.items()))
        return queue

    def add(self, seq: Sequence) -> None:
        self.queue(seq.rank).append(seq)

    def put_back(self, seq: Sequence) -> None:
        """One that ran comes before all others of its rank."""
        self.queue(seq.rank).appendleft(seq)

    def remove(self, seq: Sequence) -> None:
        self.queue(seq.rank).remove(seq)

    def note_start(self, seq: Sequence) -> None:
        """Counts whom `seq`, which waits no more, has overtaken."""
        if seq.priority != URGENT:
            self._overtakes = 0
        elif any(queue for rank, queue in self._queues.items() if rank != URGENT):
            self._overtakes += 1

    def move_up(self) -> None:
        """Makes the first of those that wait behind the urgent ones one of them, if it has waited for enough."""
        for rank, queue in self._queues.items():
            if rank == URGENT or not queue:
                continue
            seq = queue[0]
            if self._overtakes >= self._most_overtakes or seq.num_preempted >= self._most_preemptions:
                self._overtakes = 0
                seq.rank = URGENT
                self._queues[URGENT].appendleft(queue.popleft())
            return
