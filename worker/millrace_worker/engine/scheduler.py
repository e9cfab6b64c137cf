"""Which tokens run next. Pure Python over ids and counts: no tensors, no clock, no queue.

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
from itertools import chain

from millrace_worker.frames import Load

from .block_pool import BlockPool
from .filling import Filling
from .prefix_cache import extend_hashes
from .sequence import URGENT, Sequence, SequenceState
from .step import SEQUENCE_COST, Scheduled, Step

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
    ) -> None:
        self.pool = pool
        self.block_size = block_size
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.enable_prefix_caching = enable_prefix_caching
        #: See above; 0: long prompts have as much of a step as others.
        self.long_prefill_token_threshold = long_prefill_token_threshold
        #: What a step should cost while urgent sequences are about, in the units of Step.cost; None: no bound.
        self.allowance: int | None = None
        #: By rank, then by admission: the last one is the first to be preempted.
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        #: (seq_id, cached prompt tokens) of sequences scheduled for the first time since the list was last taken.
        self.started: list[tuple[int, int]] = []
        #: By rank, in its order.
        self._waiting: dict[int, deque[Sequence]] = {URGENT: deque()}
        self._sequences: dict[int, Sequence] = {}
        self._free_rows = list(range(max_num_seqs - 1, -1, -1))
        self._admissions = 0
        #: Blocks that a running sequence is computing: hash -> seq_id. Whoever needs the same block waits for it.
        self._in_flight: dict[bytes, Sequence] = {}
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
        if seq is None:
            return
        if seq.state is SequenceState.RUNNING:
            self.running.remove(seq)
            self._vacate(seq)
        else:
            self._queue(seq.rank).remove(seq)
        self._finish(seq)

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
        done = Completion()
        tokens = iter(sampled)
        finished: set[int] = set()
        for part in step.scheduled:
            seq = part.seq
            token = next(tokens) if part.samples else -1
            if seq.state is SequenceState.FINISHED:
                continue  # with the step before this one, or aborted
            running = seq.state is SequenceState.RUNNING
            if running:
                self._register_full_blocks(seq, part.start, part.start + part.count)
            if not part.samples:
                continue
            seq.num_pending -= 1
            seq.tokens.append(token)
            done.tokens.append((seq.seq_id, [token]))
            reason = self.finish_reason(seq)
            if reason is None:
                continue
            done.finished.append((seq.seq_id, reason))
            if running:
                finished.add(seq.seq_id)
                self._vacate(seq)
            else:
                self._queue(seq.rank).remove(seq)  # preempted while the step ran
            self._finish(seq)
        if finished:
            self.running = [seq for seq in self.running if seq.seq_id not in finished]
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
        # Only the last blocks of a table have empty slots, and those are never shared.
        empty = sum(len(seq.block_table) * self.block_size - seq.num_computed for seq in self.running)
        allocated = (self.pool.num_blocks - self.pool.num_free) * self.block_size
        return Load(
            running=len(self.running),
            waiting=self.num_waiting,
            free_blocks=self.pool.num_free,
            total_blocks=self.pool.num_blocks,
            allocated_slots=allocated,
            used_slots=allocated - empty,
            preemptions=self.num_preemptions,
        )

    def check_integrity(self) -> None:
        """Asserts that the pool and the running sequences agree; see BlockPool.check_integrity."""
        self.pool.check_integrity(seq.block_table for seq in self.running)
        assert set(self._in_flight.values()) <= set(self.running), "blocks in flight without an owner"
        assert len(self._free_rows) + len(self.running) == self.max_num_seqs, "rows are lost"

    def _queue(self, priority: int) -> deque[Sequence]:
        queue = self._waiting.get(priority)
        if queue is None:
            self._waiting[priority] = queue = deque()
            self._waiting = dict(sorted(self._waiting.items()))
        return queue

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def _take(self, seq: Sequence, count: int) -> Scheduled:
        missing = self._blocks_for(seq.num_computed + count) - len(seq.block_table)
        if missing > 0:
            seq.block_table.extend(self.pool.allocate(missing))
        part = Scheduled(seq, seq.num_computed, count, samples=count == seq.num_uncomputed)
        seq.num_computed += count
        seq.num_pending += part.samples
        return part

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
        for seq in self.running:
            if seq.rank != URGENT:
                return False
            if seq.num_uncomputed == 1 and not _ends(seq):
                return True
        return False

    def _advance(self, rank: int, filling: Filling) -> None:
        """The next tokens of running sequences of this rank, as far as the step has room."""
        first = bisect_right(self.running, rank - 1, key=_rank)
        members = self.running[first : bisect_right(self.running, rank, key=_rank)]
        if rank != URGENT and filling.is_bounded:
            for seq, count in self._turns(members, filling.most(rank), filling):
                if not self._give(seq, count, filling):
                    return
            return
        for seq in members:
            if filling.tokens == 0:
                return
            if not _ends(seq) and not self._give(seq, filling.tokens, filling):
                return

    def _turns(self, members: list[Sequence], most: int, filling: Filling) -> list[tuple[Sequence, int]]:
        """Who has how many tokens: those first that had none for longest, until they come to `most`.

        In the order of `running` all the same, so that none of them is preempted for one that comes later.
        """
        behind = bisect_right(members, self._turn, key=_order)
        turns: list[tuple[Sequence, int]] = []
        for seq in chain(members[behind:], members[:behind]):
            if most <= 0:
                break
            count = 0 if _ends(seq) else filling.share(seq.num_uncomputed, most)
            if count > 0:
                most -= count + SEQUENCE_COST
                turns.append((seq, count))
        if turns:
            self._turn = turns[-1][0].order
        return sorted(turns, key=lambda turn: turn[0].order)

    def _give(self, seq: Sequence, most: int, filling: Filling) -> bool:
        """Schedules tokens of a running sequence; False when it had to go for want of blocks, as all behind it had."""
        count = filling.share(seq.num_uncomputed, most)
        if count == 0:
            return True
        if seq.state is SequenceState.RUNNING:
            self._make_room(seq, count, filling)
        if seq.state is not SequenceState.RUNNING:
            return False
        filling.add(self._take(seq, count))
        return True

    def _make_room(self, seq: Sequence, count: int, filling: Filling) -> None:
        """Preempts sequences behind `seq`, and at last itself, until it can have its blocks."""
        missing = self._blocks_for(seq.num_computed + count) - len(seq.block_table)
        while missing > 0 and missing > self.pool.num_free and seq.state is SequenceState.RUNNING:
            self._preempt_last(filling)

    def _preempt_last(self, filling: Filling) -> None:
        """Takes back everything but the tokens. What stays in the cache is found again as a prefix hit."""
        seq = self.running.pop()
        self._vacate(seq)
        seq.state = SequenceState.WAITING
        seq.num_computed = 0
        seq.num_preempted += 1
        self._queue(seq.rank).appendleft(seq)
        self.num_preemptions += 1
        filling.note_preempted(seq.rank)

    def _admit(self, rank: int, filling: Filling) -> bool:
        """Starts waiting sequences of this rank; False when some had to stay, which no other rank must overtake."""
        queue = self._waiting[rank]
        held_back: list[Sequence] = []
        while queue and filling.most(rank) > 0 and len(held_back) < self.max_num_seqs:
            seq = queue[0]
            hits = self._prefix_hits(seq)
            uncomputed = seq.num_tokens - len(hits) * self.block_size
            if self._is_in_flight(seq, len(hits)) or filling.share(uncomputed, filling.most(rank)) == 0:
                held_back.append(queue.popleft())
                continue
            victims = self._victims(seq, hits)
            if victims is None:
                break
            for _ in range(victims):
                self._preempt_last(filling)
            queue.popleft()
            self._start(seq, hits)
            filling.add(self._take(seq, filling.share(seq.num_uncomputed, filling.most(rank))))
        queue.extendleft(reversed(held_back))
        return len(held_back) == len(queue)

    def _prefix_hits(self, seq: Sequence) -> list[int]:
        """Cached blocks at the head of the sequence. The last token is always computed: its logits are needed."""
        if not self.enable_prefix_caching:
            return []
        full = (seq.num_tokens - 1) // self.block_size
        extend_hashes(seq, full, self.block_size)
        hits: list[int] = []
        for block_hash in seq.block_hashes[:full]:
            block = self.pool.lookup(block_hash)
            if block is None:
                break
            hits.append(block)
        return hits

    def _is_in_flight(self, seq: Sequence, num_hits: int) -> bool:
        """Whether the first block that is missing is being computed right now, by somebody who does so no later."""
        if num_hits == len(seq.block_hashes):
            return False
        owner = self._in_flight.get(seq.block_hashes[num_hits])
        return owner is not None and owner.rank <= seq.rank

    def _victims(self, seq: Sequence, hits: list[int]) -> int | None:
        """How many of the last running sequences, all of a higher rank, have to go for `seq` to be started.

        None when that is not enough. There has to be room for all present tokens, and a block more for every sequence
        that `seq` may not preempt, so that it is not started only to be preempted in the next step.
        """
        stay = bisect_right(self.running, seq.rank, key=_rank)
        revived = sum(self.pool.is_free(block) for block in hits)
        missing = self._blocks_for(seq.num_tokens) - len(hits) + revived + stay - self.pool.num_free
        rows = 0 if self._free_rows else 1
        if rows == 0 and missing <= 0:
            return 0
        taken = Counter(hits)  # which `seq` will hold: they do not become free
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
        seq.num_computed = len(hits) * self.block_size
        if seq.num_cached is None:
            seq.num_cached = min(seq.num_computed, seq.num_prompt)
            self.started.append((seq.seq_id, seq.num_cached))
            self._admissions += 1
            seq.order = self._admissions
        self._count_overtakes(seq)
        for block_hash in seq.block_hashes[len(hits) :]:
            owner = self._in_flight.get(block_hash)
            if owner is None or owner.rank > seq.rank:
                self._in_flight[block_hash] = seq
        seq.row = self._free_rows.pop()
        seq.state = SequenceState.RUNNING
        insort(self.running, seq, key=lambda s: (s.rank, s.order))

    def _count_overtakes(self, seq: Sequence) -> None:
        if seq.priority != URGENT:
            self._overtakes = 0
        elif any(queue for rank, queue in self._waiting.items() if rank != URGENT):
            self._overtakes += 1

    def _register_full_blocks(self, seq: Sequence, start: int, end: int) -> None:
        """Makes the blocks findable that the tokens from `start` to `end` have filled."""
        first, full = start // self.block_size, end // self.block_size
        if first == full or not self.enable_prefix_caching:
            return
        extend_hashes(seq, full, self.block_size)
        for index in range(first, full):
            block_hash = seq.block_hashes[index]
            self.pool.register(seq.block_table[index], block_hash)
            if self._in_flight.get(block_hash) is seq:
                del self._in_flight[block_hash]

    def _vacate(self, seq: Sequence) -> None:
        """Gives back blocks and row."""
        self.pool.release(reversed(seq.block_table))
        seq.block_table = []
        self._free_rows.append(seq.row)
        seq.row = -1
        for block_hash in seq.block_hashes if self._in_flight else ():
            if self._in_flight.get(block_hash) is seq:
                del self._in_flight[block_hash]

    def _finish(self, seq: Sequence) -> None:
        seq.state = SequenceState.FINISHED
        self._num_urgent -= seq.priority == URGENT
        del self._sequences[seq.seq_id]


def _ends(seq: Sequence) -> bool:
    """Whether its last token is on its way."""
    return seq.num_generated + seq.num_pending >= seq.params.max_tokens


def _rank(seq: Sequence) -> int:
    return seq.rank


def _order(seq: Sequence) -> int:
    return seq.order
