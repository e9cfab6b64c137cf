"""Which tokens run next. Pure Python over ids and counts: no tensors, no clock, no queue.

A step may be scheduled while the one before it still runs: the tokens that it will sample are counted as pending, their
values are left to the device, and an end that depends on them is seen a step late.

One rule in the manner of vLLM's V1 scheduler: every sequence has computed tokens that chase its total; each step hands
out one token budget, to running sequences first and then to waiting ones. Chunked prefill, prefix hits, preemption and
resuming are all this rule.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from dataclasses import dataclass, field

from millrace_worker.frames import Load

from .block_pool import BlockPool
from .prefix_cache import extend_hashes
from .sequence import Sequence, SequenceState
from .step import Scheduled, Step


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
    ) -> None:
        self.pool = pool
        self.block_size = block_size
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.enable_prefix_caching = enable_prefix_caching
        #: By priority, then by admission: the last one is the first to be preempted.
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        #: (seq_id, cached prompt tokens) of sequences scheduled for the first time since the list was last taken.
        self.started: list[tuple[int, int]] = []
        self._waiting: dict[int, deque[Sequence]] = {}
        self._sequences: dict[int, Sequence] = {}
        self._free_rows = list(range(max_num_seqs - 1, -1, -1))
        self._admissions = 0
        #: Blocks that a running sequence is computing: hash -> seq_id. Whoever needs the same block waits for it.
        self._in_flight: dict[bytes, int] = {}

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
        self._queue(seq.priority).append(seq)

    def abort(self, seq_id: int) -> None:
        """Forgets a sequence, if it is still here."""
        seq = self._sequences.get(seq_id)
        if seq is None:
            return
        if seq.state is SequenceState.RUNNING:
            self.running.remove(seq)
            self._vacate(seq)
        else:
            self._queue(seq.priority).remove(seq)
        self._finish(seq)

    def schedule(self) -> Step | None:
        """The next step, its blocks allocated; None when nothing can run."""
        budget = self.max_num_batched_tokens
        scheduled: list[Scheduled] = []
        preempted = False
        for seq in list(self.running):
            if budget == 0 or seq.state is not SequenceState.RUNNING:
                break  # a sequence before it took its blocks, and those of all that follow
            if seq.num_generated + seq.num_pending >= seq.params.max_tokens:
                continue  # ends with the token that is pending
            count = min(seq.num_uncomputed, budget)
            preempted |= self._make_room(seq, count)
            if seq.state is not SequenceState.RUNNING:
                break  # the last one left, and still no room: it waits for a finish
            scheduled.append(self._take(seq, count))
            budget -= count
        if not preempted:
            self._admit(scheduled, budget)
        if not scheduled:
            return None
        decodes = [s for s in scheduled if s.count == 1]
        rest = [s for s in scheduled if s.count > 1]
        return Step((*decodes, *rest), len(decodes), sum(s.count for s in scheduled))

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
                self._queue(seq.priority).remove(seq)  # preempted while the step ran
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
        owners = {seq.seq_id for seq in self.running}
        assert set(self._in_flight.values()) <= owners, "blocks in flight without an owner"
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

    def _make_room(self, seq: Sequence, count: int) -> bool:
        """Preempts sequences behind `seq`, and at last itself, until it can have its blocks."""
        missing = self._blocks_for(seq.num_computed + count) - len(seq.block_table)
        preempted = False
        while missing > self.pool.num_free and seq.state is SequenceState.RUNNING:
            self._preempt(self.running.pop())
            preempted = True
        return preempted

    def _preempt(self, seq: Sequence) -> None:
        """Takes back everything but the tokens. What stays in the cache is found again as a prefix hit."""
        self._vacate(seq)
        seq.state = SequenceState.WAITING
        seq.num_computed = 0
        self._queue(seq.priority).appendleft(seq)
        self.num_preemptions += 1

    def _admit(self, scheduled: list[Scheduled], budget: int) -> None:
        for queue in self._waiting.values():
            held_back: list[Sequence] = []
            while queue and budget > 0 and self._free_rows and len(held_back) < self.max_num_seqs:
                seq = queue[0]
                hits = self._prefix_hits(seq)
                if self._is_in_flight(seq, len(hits)):
                    held_back.append(queue.popleft())
                    continue
                if not self._fits(seq, hits):
                    break
                queue.popleft()
                self._start(seq, hits)
                count = min(seq.num_uncomputed, budget)
                scheduled.append(self._take(seq, count))
                budget -= count
            queue.extendleft(reversed(held_back))
            if queue and len(held_back) < len(queue):
                return  # a lower priority must not overtake

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
        """Whether the first block that is missing is being computed by somebody else right now."""
        return num_hits < len(seq.block_hashes) and seq.block_hashes[num_hits] in self._in_flight

    def _fits(self, seq: Sequence, hits: list[int]) -> bool:
        """Whether all present tokens find room and every running sequence can still grow by a block.

        The reserve keeps a sequence from being admitted only to be preempted in the next step.
        """
        missing = self._blocks_for(seq.num_tokens) - len(hits)
        revived = sum(self.pool.is_free(block) for block in hits)
        return missing + revived + len(self.running) <= self.pool.num_free

    def _start(self, seq: Sequence, hits: list[int]) -> None:
        self.pool.share(hits)
        seq.block_table = list(hits)
        seq.num_computed = len(hits) * self.block_size
        if seq.num_cached is None:
            seq.num_cached = min(seq.num_computed, seq.num_prompt)
            self.started.append((seq.seq_id, seq.num_cached))
            self._admissions += 1
            seq.order = self._admissions
        for block_hash in seq.block_hashes[len(hits) :]:
            self._in_flight.setdefault(block_hash, seq.seq_id)
        seq.row = self._free_rows.pop()
        seq.state = SequenceState.RUNNING
        insort(self.running, seq, key=lambda s: (s.priority, s.order))

    def _register_full_blocks(self, seq: Sequence, start: int, end: int) -> None:
        """Makes the blocks findable that the tokens from `start` to `end` have filled."""
        first, full = start // self.block_size, end // self.block_size
        if first == full or not self.enable_prefix_caching:
            return
        extend_hashes(seq, full, self.block_size)
        for index in range(first, full):
            block_hash = seq.block_hashes[index]
            self.pool.register(seq.block_table[index], block_hash)
            if self._in_flight.get(block_hash) == seq.seq_id:
                del self._in_flight[block_hash]

    def _vacate(self, seq: Sequence) -> None:
        """Gives back blocks and row."""
        self.pool.release(reversed(seq.block_table))
        seq.block_table = []
        self._free_rows.append(seq.row)
        seq.row = -1
        for block_hash in seq.block_hashes if self._in_flight else ():
            if self._in_flight.get(block_hash) == seq.seq_id:
                del self._in_flight[block_hash]

    def _finish(self, seq: Sequence) -> None:
        seq.state = SequenceState.FINISHED
        del self._sequences[seq.seq_id]
