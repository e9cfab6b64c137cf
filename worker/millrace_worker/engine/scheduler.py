"""Which tokens run next. Ids and counts only: no tensors, no clock, no queue.

A step may be scheduled while the one before it still runs: the tokens that it will sample are counted as pending, their
values are left to the device, and an end that depends on them is seen a step late.

One rule in the manner of vLLM's V1 scheduler: every sequence has computed tokens that chase its total; each step hands
out one token budget, rank by rank, to running sequences first and then to waiting ones. Chunked prefill, prefix hits,
preemption and resuming are all this rule.

The interactive lane has the lowest rank. It takes rows and blocks from the batch lane where it finds none free, and
while it is about, what the batch lane adds to a step is bounded. A batch sequence that was passed over too often is
moved up.

A long prompt may be kept from making steps long: while an interactive sequence decodes, those with more than
`long_prefill_token_threshold` tokens to compute share so many of a step, first come, first served, and shorter ones
that wait behind them go first.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import chain, islice

import numpy as np

from millrace_worker.frames import Load, Started

from .block_pool import BlockPool
from .filling import Filling
from .hit_ceiling import HitCeiling
from .lower_tier import LowerTier, NoLowerTier
from .prefixes import Prefixes
from .row_counts import RowCounts
from .sequence import URGENT, Sequence, SequenceState
from .step import SEQUENCE_COST, Step

#: A sequence that waits is moved up once so many urgent ones were started before it, or once it was preempted so often.
_MOST_OVERTAKES = 8
_MOST_PREEMPTIONS = 4
#: Steps for which the allowance holds after the last urgent sequence: the next one is likely to come soon.
_ALERT_STEPS = 256
#: Else a step may cost so many times as much: the first urgent sequence after a while should not wait for long, either.
_TIMES_CALM = 8


@dataclass(slots=True)
class Completion:
    """What a completed step changed, in engine terms."""

    tokens: list[tuple[int, list[int]]] = field(default_factory=list)
    finished: list[tuple[int, str]] = field(default_factory=list)


class Scheduler:
    """Owns every sequence of the engine and all block accounting."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        block_size: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        enable_prefix_caching: bool = True,
        long_prefill_token_threshold: int = 0,
        tier: LowerTier | None = None,
    ) -> None:
        self.pool = pool
        #: Where prompts' blocks may be that the pool has not.
        self.tier = tier or NoLowerTier()
        self.block_size = block_size
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        #: See above; 0: long prompts have as much of a step as others.
        self.long_prefill_token_threshold = long_prefill_token_threshold
        #: What a step should cost while urgent sequences are about, in the units of Step.cost; None: no bound.
        self.allowance: int | None = None
        #: By rank, then by admission: the last one is the first to be preempted.
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        #: Sequences scheduled for the first time since the list was last taken.
        self.started: list[Started] = []
        #: Of the blocks of their prompts.
        self.ceiling = HitCeiling()
        #: By rank, in its order.
        self._waiting: dict[int, deque[Sequence]] = {URGENT: deque()}
        self._sequences: dict[int, Sequence] = {}
        self._counts = RowCounts(max_num_seqs)
        #: Rows of `running`; None: not brought up to date yet.
        self._rows: np.ndarray | None = None
        self._admissions = 0
        self._prefixes = Prefixes(pool, self.tier, block_size, enabled=enable_prefix_caching)
        self._num_urgent = 0
        self._steps_without_urgent = _ALERT_STEPS
        #: Urgent sequences started since one of another rank was, while one waited.
        self._overtakes = 0
        #: `order` of the last bounded sequence that had its turn.
        self._turn = 0

    @property
    def num_waiting(self) -> int:
        return len(self._sequences) - len(self.running)

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    def add(self, seq: Sequence) -> None:
        """Queues a sequence that fits the cache on its own (the engine has checked)."""
        assert seq.seq_id not in self._sequences
        self._sequences[seq.seq_id] = seq
        self._num_urgent += seq.priority == URGENT
        self._queue(seq.rank).append(seq)

    def abort(self, seq_id: int) -> None:
        """Forgets a sequence, if it is still here."""
        seq = self._sequences.get(seq_id)
        if seq is not None:
            self._leave(seq)

    def schedule(self) -> Step | None:
        """The next step, its blocks allocated; None when nothing can run."""
        self._move_up()
        self._steps_without_urgent = 0 if self._num_urgent else self._steps_without_urgent + 1
        allowance = self.allowance
        if allowance is not None and self._steps_without_urgent >= _ALERT_STEPS:
            allowance *= _TIMES_CALM
        others_run = bool(self.running) and self.running[-1].rank != URGENT
        long = self.long_prefill_token_threshold
        long = long if long > 0 and self._urgent_decode() else 0
        filling = Filling(self.max_num_batched_tokens, allowance, others_run=others_run, long=long)
        admitting = True
        for rank in list(self._waiting):
            self._advance(rank, filling)
            admitting = admitting and filling.may_start(rank) and self._admit(rank, filling)
            if rank == URGENT:
                filling.urgent_done()
        return filling.step()

    def complete(self, step: Step, sampled: list[int]) -> Completion:
        """Books a step that has run; `sampled` holds one token for each scheduled part that samples, in order.

        Steps are completed in the order in which they were scheduled. What a later one computes of a sequence that ends
        here is for nothing, and dropped when that step is completed.
        """
        self._register_prompts(step)
        done, stopped, gone = Completion(), [], SequenceState.FINISHED
        for seq, token in zip(step.sampling, sampled, strict=True):
            if seq.state is gone:
                continue  # with the step before this one, or aborted
            seq.tokens.append(token)
            done.tokens.append((seq.seq_id, [token]))
            if token in seq.params.stop_token_ids:
                stopped.append(seq)
        for seq in chain(stopped, step.last):
            reason = None if seq.state is gone else self.finish_reason(seq)
            if reason is not None:
                done.finished.append((seq.seq_id, reason))
                self._leave(seq)
        return done

    @staticmethod
    def finish_reason(seq: Sequence) -> str | None:
        """Why the sequence ends with its last token, or None."""
        generated, params = seq.num_generated, seq.params
        if generated == 0:
            return None
        if generated > params.min_tokens and seq.tokens[-1] in params.stop_token_ids:
            return "stop"
        return "length" if generated >= params.max_tokens else None

    def load(self) -> Load:
        """The counts that the front and the metrics see, with what is scheduled computed and nothing of it freed."""
        allocated = (self.pool.num_blocks - self.pool.num_free) * self.block_size
        return Load(
            running=len(self.running),
            waiting=self.num_waiting,
            free_blocks=self.pool.num_free,
            total_blocks=self.pool.num_blocks,
            allocated_slots=allocated,
            used_slots=allocated - self._counts.num_empty,
            preemptions=self.num_preemptions,
        )

    def check_integrity(self) -> None:
        """Asserts that the pool and the running sequences agree; see BlockPool.check_integrity."""
        self.pool.check_integrity(chain((seq.block_table for seq in self.running), self.tier.held))
        self.tier.check_integrity()
        assert self._prefixes.owners <= set(self.running), "blocks in flight without an owner"
        assert self._counts.num_free + len(self.running) == self.max_num_seqs, "rows are lost"
        assert self._running_rows().tolist() == [seq.row for seq in self.running], "rows are out of date"
        for seq in self.running:
            capacity = self._counts.capacity[seq.row]
            assert capacity == len(seq.block_table) * self.block_size, "capacity differs from the blocks"
            assert self._counts.computed[seq.row] <= capacity, "tokens without a block"

    def _queue(self, priority: int) -> deque[Sequence]:
        queue = self._waiting.get(priority)
        if queue is None:
            self._waiting[priority] = queue = deque()
            self._waiting = dict(sorted(self._waiting.items()))
        return queue

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def _running_rows(self) -> np.ndarray:
        if self._rows is None:
            self._rows = np.array([seq.row for seq in self.running], dtype=np.int64)
        return self._rows

    def _move_up(self) -> None:
        """Of those that wait behind the urgent ones, the first is made one of them once it has waited for enough."""
        for rank, queue in self._waiting.items():
            if rank == URGENT or not queue:
                continue
            seq = queue[0]
            if self._overtakes >= _MOST_OVERTAKES or seq.num_preempted >= _MOST_PREEMPTIONS:
                self._overtakes = 0
                seq.rank = URGENT
                self._waiting[URGENT].appendleft(queue.popleft())
            return

    def _urgent_decode(self) -> bool:
        """Whether an interactive sequence gets its next token in this step."""
        urgent = bisect_right(self.running, URGENT, key=_rank)
        return bool((self._counts.owed(self._running_rows()[:urgent]) == 1).any())

    def _advance(self, rank: int, filling: Filling) -> None:
        """The next tokens of running sequences of this rank, as far as the step has room."""
        first = bisect_right(self.running, rank - 1, key=_rank)
        members = self.running[first : bisect_right(self.running, rank, key=_rank)]
        if not members:
            return
        rows = self._running_rows()[first : first + len(members)]
        counts = self._shares(members, self._counts.owed(rows), rank, filling)
        chosen = np.flatnonzero(counts)
        if len(chosen) < len(members):
            members, rows, counts = [members[i] for i in chosen.tolist()], rows[chosen], counts[chosen]
        stay = self._find_blocks(members, rows, counts, filling)
        if stay > 0:
            filling.charge(int(counts[:stay].sum()), stay)
            self._book(members[:stay], rows[:stay], counts[:stay], filling)

    def _shares(self, members: list[Sequence], owed: np.ndarray, rank: int, filling: Filling) -> np.ndarray:
        """How many of the tokens that they owe these running sequences have in this step.

        The first ones all, until the step is full. Where it is bounded, those come first that had none for longest, and
        each costs more than its tokens.
        """
        bounded = rank != URGENT and filling.is_bounded
        most, each = filling.most(rank), SEQUENCE_COST if bounded else 0
        first = bisect_right(members, self._turn, key=_order) if bounded else 0
        served = np.flatnonzero(owed)
        all_fit = int(owed.sum()) + each * (len(served) - 1) <= most
        if all_fit and not (filling.bounds_long and (owed > 1).any()):
            if bounded and len(served) > 0:
                # The last one before `first`, or of all.
                self._turn = members[served[np.searchsorted(served, first) - 1]].order
            return owed
        wanted, counts = owed.tolist(), np.zeros_like(owed)
        for index in chain(range(first, len(members)), range(first)):
            if most <= 0:
                break
            count = filling.share(wanted[index], most)
            if count > 0:
                counts[index] = count
                filling.note_share(count)
                most -= count + each
                if bounded:
                    self._turn = members[index].order
        return counts

    def _find_blocks(self, members: list[Sequence], rows: np.ndarray, counts: np.ndarray, filling: Filling) -> int:
        """Gives running sequences the blocks for their next tokens.

        Where there are too few, the last of all are preempted, of `members` too. Returns how many of these are left.
        """
        stay, capacity = len(members), self._counts.capacity
        missing = -((capacity[rows] - self._counts.computed[rows] - counts) // self.block_size)
        growing = np.flatnonzero(missing > 0)
        if len(growing) == 0:
            return stay
        wanted = int(missing[growing].sum())
        if wanted > self.pool.num_free:
            self.tier.give_back()
        while wanted > self.pool.num_free:
            self._preempt_last(filling)
            if members[stay - 1].state is not SequenceState.RUNNING:
                stay -= 1
                growing = growing[growing < stay]
                wanted = int(missing[growing].sum())
        blocks = iter(self.pool.allocate(wanted))
        for index in growing.tolist():
            members[index].block_table.extend(islice(blocks, int(missing[index])))
            filling.grown.append(members[index])
        capacity[rows[growing]] += missing[growing] * self.block_size
        return stay

    def _grow(self, seq: Sequence, blocks: int, filling: Filling) -> None:
        seq.block_table += self.pool.allocate(blocks)
        self._counts.capacity[seq.row] += blocks * self.block_size
        filling.grown.append(seq)

    def _book(self, seqs: list[Sequence], rows: np.ndarray, counts: np.ndarray, filling: Filling) -> None:
        """Puts tokens that have their blocks into the step."""
        table = self._counts
        starts = table.computed[rows]
        ends = starts + counts
        samples = ends == table.tokens[rows]
        table.computed[rows] = ends
        table.tokens[rows] += samples
        filling.last += [seqs[i] for i in np.flatnonzero(samples & (ends == table.most[rows])).tolist()]
        known = starts < table.known[rows]
        first_tokens = bool(known.any() and (samples & (ends == table.prompt[rows])).any())
        filling.add(seqs, (rows, starts, counts, samples, known), first_tokens=first_tokens)

    def _preempt_last(self, filling: Filling) -> None:
        """Takes back everything but the tokens. What stays in the cache is found again as a prefix hit."""
        seq = self.running.pop()
        self.tier.preempted(seq, int(self._counts.computed[seq.row]))
        self._vacate(seq)
        seq.state = SequenceState.WAITING
        seq.num_preempted += 1
        self._queue(seq.rank).appendleft(seq)
        self.num_preemptions += 1
        filling.note_preempted(seq.rank)

    def _admit(self, rank: int, filling: Filling) -> bool:
        """Starts waiting sequences of this rank; False when some had to stay, which no other rank must overtake."""
        queue = self._waiting[rank]
        held_back: list[Sequence] = []
        started: list[Sequence] = []
        counts: list[int] = []
        while queue and filling.most(rank) > 0 and len(held_back) < self.max_num_seqs:
            seq = queue[0]
            hits = self._prefixes.hits(seq)
            computed = len(hits) * self.block_size
            count = filling.share(seq.num_tokens - computed, filling.most(rank))
            if count == 0 or self._prefixes.is_in_flight(seq, len(hits)):
                held_back.append(queue.popleft())
                continue
            victims = self._victims(seq, hits)
            if victims is None:
                break
            if self.tier.hold_back(seq, len(hits)):
                held_back.append(queue.popleft())
                continue
            for _ in range(victims):
                self._preempt_last(filling)
            queue.popleft()
            self._start(seq, hits)
            filling.note_share(count)
            self._grow(seq, self._blocks_for(computed + count) - len(hits), filling)
            filling.charge(count, 1)
            started.append(seq)
            counts.append(count)
        if started:
            self._book(started, np.array([seq.row for seq in started]), np.array(counts), filling)
        queue.extendleft(reversed(held_back))
        return len(held_back) == len(queue)

    def _victims(self, seq: Sequence, hits: list[int]) -> int | None:
        """How many of the last running sequences, all of a higher rank, have to go for `seq` to be started.

        None when that is not enough. There has to be room for all present tokens, and a block more for every sequence
        that `seq` may not preempt, so that it is not started only to be preempted in the next step.
        """
        stay = bisect_right(self.running, seq.rank, key=_rank)
        revived = sum(self.pool.is_free(block) for block in hits)
        missing = self._blocks_for(seq.num_tokens) - len(hits) + revived + stay - self.pool.num_free
        rows = 0 if self._counts.num_free else 1
        if rows == 0 and missing <= 0:
            return 0
        taken = Counter(dict.fromkeys(hits, -1))  # `seq` will hold them: they do not become free
        for count, victim in enumerate(reversed(self.running[stay:]), start=1):
            for block in victim.block_table:
                taken[block] += 1
                missing -= taken[block] == self.pool.references(block)
            if count >= rows and missing <= 0:
                return count
        return None

    def _start(self, seq: Sequence, hits: list[int]) -> None:
        self.pool.share(hits)
        seq.block_table = list(hits)
        num_computed = len(hits) * self.block_size
        lower = self.tier.started(seq, len(hits), first=seq.num_cached is None)
        if seq.num_cached is None:
            seq.num_cached = min(num_computed, seq.num_prompt)
            self._note_started(seq, lower)
            self._admissions += 1
            seq.order = self._admissions
        self._count_overtakes(seq)
        self._prefixes.claim(seq, len(hits))
        self._counts.start(seq, num_computed)
        self._rows = None
        seq.state = SequenceState.RUNNING
        insort(self.running, seq, key=lambda s: (s.rank, s.order))

    def _note_started(self, seq: Sequence, lower: dict[str, int]) -> None:
        """`lower`: what of its prompt each lower tier had."""
        cached = seq.num_cached or 0
        gpu = cached - sum(lower.values()) if lower else cached
        self.started.append(Started(seq.seq_id, cached, {"gpu": gpu, **lower} if gpu else lower))
        self.ceiling.add(seq.block_hashes[: seq.num_prompt // self.block_size])

    def _count_overtakes(self, seq: Sequence) -> None:
        if seq.priority != URGENT:
            self._overtakes = 0
        elif any(queue for rank, queue in self._waiting.items() if rank != URGENT):
            self._overtakes += 1

    def _register_prompts(self, step: Step) -> None:
        """Makes the blocks findable that the step has filled with what others may ask for now."""
        for part in np.flatnonzero(step.known).tolist():
            if step.seqs[part].state is SequenceState.RUNNING:
                start = int(step.starts[part])
                self._prefixes.register(step.seqs[part], start, start + int(step.counts[part]))

    def _vacate(self, seq: Sequence) -> None:
        """Gives back blocks and row. What it has generated is made findable only now, all at once.

        Its last token was never computed, or is so by the step that runs now.
        """
        known, computed = int(self._counts.known[seq.row]), int(self._counts.computed[seq.row])
        self._prefixes.register(seq, known, min(computed, seq.num_tokens - 1))
        self.pool.release(reversed(seq.block_table))
        seq.block_table = []
        self._counts.vacate(seq)
        self._rows = None
        self._prefixes.disclaim(seq)

    def _leave(self, seq: Sequence) -> None:
        """Forgets a sequence that runs or waits."""
        if seq.state is SequenceState.RUNNING:
            self.running.remove(seq)
            self._vacate(seq)
        else:
            self._queue(seq.rank).remove(seq)
        seq.state = SequenceState.FINISHED
        self.tier.gone(seq)
        self._num_urgent -= seq.priority == URGENT
        del self._sequences[seq.seq_id]


def _rank(seq: Sequence) -> int:
    return seq.rank


def _order(seq: Sequence) -> int:
    return seq.order
