"""Admission: who of those that wait starts, and who that runs has to go for it."""

from __future__ import annotations

from collections import Counter

import numpy as np

from millrace_worker.frames import Started

from .block_pool import BlockPool
from .filling import Filling
from .hit_ceiling import HitCeiling
from .lower_tier import LowerTier, Wait
from .pins import Pins
from .prefixes import Prefixes
from .running import Running
from .sequence import URGENT, Sequence, SequenceState
from .waiting import Waiting

#: Of the long prompts that had no share of a step, so many are looked at in the next one.
_LONG_ONES = 8
#: Blocks are fetched for so many sequences more than there are rows to be had: while these are on their way, steps go
#: on and rows become free, and whoever takes one of them then has its blocks. They are few, as what was fetched is
#: cached like anything else until its sequence starts, and others' blocks push it out.
_LOOK_AHEAD = 2
#: Once so many may not be fetched for yet, nobody behind them starts before them.
_MOST_DEFERRED = 16


class Admission:
    """All ways of a sequence between waiting, running and gone."""

    def __init__(
        self,
        waiting: Waiting,
        running: Running,
        prefixes: Prefixes,
        pins: Pins,
        ceiling: HitCeiling,
        pool: BlockPool,
        tier: LowerTier,
        block_size: int,
    ) -> None:
        self.num_preemptions = 0
        #: Jobs' sequences started for the first time since the list was last taken.
        self.started: list[Started] = []
        #: Sequences of priority URGENT that run or wait.
        self.num_urgent = 0
        self._waiting, self._running, self._prefixes, self._pins = waiting, running, prefixes, pins
        self._ceiling, self._pool, self._tier, self._block_size = ceiling, pool, tier, block_size
        self._admissions = 0
        #: The tier's, when those who wait for it were last let go.
        self._news = tier.news

    def enter(self, seq: Sequence) -> None:
        """A new sequence waits."""
        self.num_urgent += seq.priority == URGENT
        self._waiting.add(seq)

    def prepare(self) -> None:
        """Before a step: whoever waits for a lower tier that has news is ready again; see Waiting.move_up, too."""
        news = self._tier.news
        if news != self._news:
            self._news = news
            self._waiting.let_go()
        moved = self._waiting.move_up()
        if moved is not None:
            self._prefixes.unpark(moved)

    def admit(self, rank: int, filling: Filling, now: float) -> bool:
        """Starts waiting sequences of this rank; False when some had to stay, which no other rank must overtake."""
        line = self._waiting.line(rank)
        if not line:
            return True
        for woken in self._prefixes.take_woken():
            self._waiting.line(woken.rank).wake(woken, now)
        line.begin(_LONG_ONES if filling.bounds_long else None)
        started: list[Sequence] = []
        counts: list[int] = []
        held_back = deferred = 0
        while filling.most(rank) > 0 and line.num_held + held_back < self._running.max_num_seqs:
            seq = line.next(now)
            if seq is None:
                break
            hits = self._prefixes.hits(seq)
            computed = len(hits) * self._block_size
            count = filling.share(seq.num_tokens - computed, filling.most(rank))
            awaited = self._prefixes.awaited(seq, len(hits))
            if awaited is not None:
                held_back += 1
                line.park(seq)
                self._prefixes.park(seq, awaited)
                continue
            victims = self._victims(seq, hits) if count > 0 else 0
            # Pins stay as long as somebody runs whose end will make room.
            while victims is None and self._is_next(seq) and self._pins.give_way():
                victims = self._victims(seq, hits)
            if victims is None:
                if line.no_room(seq, now):
                    continue
                break
            if count == 0:
                held_back += 1
                line.set_aside(seq)
                continue
            wait = self._tier.hold_back(seq, len(hits), may_load=self._may_load(seq, hits))
            if wait is Wait.TURN:
                held_back, deferred = held_back + 1, deferred + 1
                line.set_aside(seq)
                if deferred == _MOST_DEFERRED:
                    break
                continue
            if wait is Wait.ROOM:
                for _ in range(victims):
                    self.preempt_last(filling)
                self._tier.place(seq)
            if wait is not Wait.NONE:
                line.hold(seq)
                continue
            for _ in range(victims):
                self.preempt_last(filling)
            self._waiting.start(seq, now)
            self._start(seq, hits, filling)
            filling.note_share(count)
            self._running.grow(seq, self._blocks_for(computed + count) - len(hits), filling)
            filling.charge(count, 1)
            started.append(seq)
            counts.append(count)
        if started:
            self._running.book(started, np.array([seq.row for seq in started]), np.array(counts), filling)
        return line.next(now) is None

    def preempt_last(self, filling: Filling) -> None:
        """Takes back everything but the tokens. What stays in the cache is found again as a prefix hit."""
        self._preempt(self._running.seqs[-1], filling)

    def leave(self, seq: Sequence) -> None:
        """Forgets a sequence that runs or waits."""
        if seq.state is SequenceState.RUNNING:
            self._vacate(seq)
        else:
            self._waiting.remove(seq)
            self._prefixes.forget(seq)
        seq.state = SequenceState.FINISHED
        self._tier.gone(seq)
        self.num_urgent -= seq.priority == URGENT

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self._block_size)

    def _victims(self, seq: Sequence, hits: list[int]) -> int | None:
        """How many of the last running sequences, all of a higher rank, have to go for `seq` to be started.

        None when that is not enough. There has to be room for all present tokens, and a block more for every sequence
        that `seq` may not preempt, so that it is not started only to be preempted in the next step. Nobody goes for
        blocks that a lower tier holds only for a copy.
        """
        stay = self._running.num_up_to(seq.rank)
        rows = 0 if self._running.counts.num_free else 1
        blocks = self._blocks_for(seq.num_tokens) + stay
        if rows == 0 and blocks <= self._pool.num_free:
            return 0  # even if all hits are of blocks that are free
        missing = blocks - self._num_in_use(hits) - self._pool.num_free
        others = self._running.seqs[stay:]
        if others and missing > 0 and any(self._tier.held):
            self._tier.give_back()
            # Hits that only the tier held are free now, and not there for anything else.
            missing = blocks - self._num_in_use(hits) - self._pool.num_free
        if rows == 0 and missing <= 0:
            return 0
        taken = Counter(dict.fromkeys(hits, -1))  # `seq` will hold them: they do not become free
        for count, victim in enumerate(reversed(others), start=1):
            for block in victim.block_table:
                taken[block] += 1
                missing -= taken[block] == self._pool.references(block)
            if count >= rows and missing <= 0:
                return count
        return None

    def _may_load(self, seq: Sequence, hits: list[int]) -> bool:
        """Whether rows and blocks will be left for `seq` by those that blocks are fetched for already."""
        sequences, promised = self._tier.ahead(seq.rank)
        if sequences == 0:
            return True
        stay = self._running.num_up_to(seq.rank)
        if sequences >= self._running.max_num_seqs - stay + _LOOK_AHEAD:
            return False
        # At most: what they share is counted several times.
        room = self._pool.num_free + sum(len(other.block_table) for other in self._running.seqs[stay:])
        return self._blocks_for(seq.num_tokens) + stay + promised <= room + self._num_in_use(hits)

    def _num_in_use(self, blocks: list[int]) -> int:
        """How many of these have a reference."""
        return len(blocks) - sum(map(self._pool.is_free, blocks))

    def _is_next(self, seq: Sequence) -> bool:
        """Whether nobody runs that `seq`, a job, may not preempt."""
        return not seq.is_own and self._running.num_up_to(seq.rank) == 0

    def _start(self, seq: Sequence, hits: list[int], filling: Filling) -> None:
        first = seq.num_cached is None
        if first:
            seq.num_cached = min(len(hits) * self._block_size, seq.num_prompt)
            self._pins.started(seq, len(hits))
            self._admissions += 1
            seq.order = self._admissions
        self._running.start(seq, hits)
        seq.state = SequenceState.RUNNING
        for owner, end in self._prefixes.claim(seq, len(hits)).items():
            if self._running.counts.computed[owner.row] < end * self._block_size:
                self._preempt(owner, filling)  # it finds these blocks when they are there
        lower = self._tier.started(seq, len(hits), first=first)
        if first and not seq.is_own:
            self._note_started(seq, lower)

    def _note_started(self, seq: Sequence, lower: dict[str, int]) -> None:
        """`lower`: what of its prompt each lower tier had."""
        cached = seq.num_cached or 0
        gpu = cached - sum(lower.values()) if lower else cached
        self.started.append(Started(seq.seq_id, cached, {"gpu": gpu, **lower} if gpu else lower))
        self._ceiling.add(seq.block_hashes[: seq.num_prompt // self._block_size])

    def _preempt(self, seq: Sequence, filling: Filling) -> None:
        if not seq.is_own:
            self._tier.preempted(seq, int(self._running.counts.computed[seq.row]))
        self._vacate(seq)
        seq.state = SequenceState.WAITING
        seq.num_preempted += 1
        self._waiting.put_back(seq)
        self.num_preemptions += not seq.is_own
        filling.note_preempted(seq.rank)

    def _vacate(self, seq: Sequence) -> None:
        """Gives back blocks and row. What it has generated is made findable only now, all at once.

        Its last token was never computed, or is so by the step that runs now.
        """
        counts = self._running.counts
        known, computed = int(counts.known[seq.row]), int(counts.computed[seq.row])
        self._prefixes.register(seq, known, min(computed, seq.num_tokens - 1))
        self._running.leave(seq)
        self._prefixes.disclaim(seq)
