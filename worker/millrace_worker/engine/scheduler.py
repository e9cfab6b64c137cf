"""Which tokens run next. Ids and counts only: no tensors, no queue, and no clock but what the loop says.

A step may be scheduled while the one before it still runs: the tokens that it will sample are counted as pending, their
values are left to the device, and an end that depends on them is seen a step late.

One rule in the manner of vLLM's V1 scheduler: every sequence has computed tokens that chase its total; each step hands
out one token budget, rank by rank, to running sequences first and then to waiting ones. Chunked prefill, prefix hits,
preemption and resuming are all this rule.

The interactive lane has the lowest rank. It takes rows and blocks from the batch lane where it finds none free, and
while it is about, what the batch lane adds to a step is bounded. A batch sequence that was passed over too often is
moved up. Behind both come the engine's own sequences, which bring pinned prefixes into the cache.

A long prompt may be kept from making steps long: while an interactive sequence decodes, those with more than
`long_prefill_token_threshold` tokens to compute share so many of a step, first come, first served, and shorter ones
that wait behind them go first.

Waiting sequences of the batch lane may be picked by the prefixes that they share, see Picking; the interactive lane's
start in order of arrival.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain, islice

import numpy as np

from millrace_worker.frames import Load, Started

from .admission import Admission
from .block_pool import BlockPool
from .filling import Filling
from .hit_ceiling import HitCeiling
from .line import Line
from .lower_tier import LowerTier, NoLowerTier
from .picking import LEAST_TOKENS, Picking
from .pins import Pins
from .prefixes import Prefixes
from .running import Running
from .sequence import OWN, URGENT, Sequence, SequenceState
from .step import Step
from .turns import Turns
from .waiting import Waiting

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
        prefix_wait: float = 0.0,
        tier: LowerTier | None = None,
        pins: Pins | None = None,
    ) -> None:
        """`prefix_wait`: seconds for which a sequence that is not urgent may wait for others that share a prefix."""
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
        #: Of the blocks of all prompts.
        self.ceiling = HitCeiling()
        self._sequences: dict[int, Sequence] = {}
        self._prefixes = Prefixes(pool, self.tier, block_size, enabled=enable_prefix_caching)
        #: What is to stay in the cache, and gives way before a sequence could not run at all.
        self.pins = pins or Pins(pool, self.tier, block_size, enabled=enable_prefix_caching)
        self._running = Running(pool, max_num_seqs, block_size)
        self._counts = self._running.counts
        self._prefix_wait = prefix_wait if enable_prefix_caching else 0.0
        self._waiting = Waiting(self._make_line, most_overtakes=_MOST_OVERTAKES, most_preemptions=_MOST_PREEMPTIONS)
        self._admission = Admission(
            *(self._waiting, self._running, self._prefixes, self.pins, self.ceiling), pool, self.tier, block_size
        )
        self._turns = Turns()
        self._steps_without_urgent = _ALERT_STEPS

    @property
    def running(self) -> list[Sequence]:
        """By rank, then by admission: the last one is the first to be preempted."""
        return self._running.seqs

    @property
    def started(self) -> list[Started]:
        """Jobs' sequences scheduled for the first time since the list was last replaced."""
        return self._admission.started

    @started.setter
    def started(self, started: list[Started]) -> None:
        self._admission.started = started

    @property
    def num_preemptions(self) -> int:
        return self._admission.num_preemptions

    @property
    def num_waiting(self) -> int:
        return len(self._sequences) - len(self._running)

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    @property
    def has_jobs(self) -> bool:
        """Whether there are sequences that are not the engine's own."""
        return len(self._sequences) > self.pins.num_own

    def add(self, seq: Sequence) -> None:
        """Queues a sequence that fits the cache on its own (the engine has checked)."""
        assert seq.seq_id not in self._sequences
        self._sequences[seq.seq_id] = seq
        self._admission.enter(seq)

    def abort(self, seq_id: int) -> None:
        """Forgets a sequence, if it is still here."""
        seq = self._sequences.get(seq_id)
        if seq is not None:
            self._leave(seq)

    def schedule(self, now: float = 0.0) -> Step | None:
        """The next step, its blocks allocated; None when nothing can run. `now`, in seconds, never goes back."""
        self._admission.prepare()
        self._steps_without_urgent = 0 if self._admission.num_urgent else self._steps_without_urgent + 1
        allowance = self.allowance
        if allowance is not None and self._steps_without_urgent >= _ALERT_STEPS:
            allowance *= _TIMES_CALM
        others_run = bool(self.running) and self.running[-1].rank != URGENT
        long = self.long_prefill_token_threshold
        long = long if long > 0 and self._urgent_decode() else 0
        filling = Filling(self.max_num_batched_tokens, allowance, others_run=others_run, long=long)
        admitting = True
        for rank in self._waiting.ranks:
            self._advance(rank, filling)
            admitting = admitting and filling.may_start(rank) and self._admission.admit(rank, filling, now)
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
        """The counts that the front and the metrics see, with what is scheduled computed and nothing of it freed.

        The engine's own sequences are not counted: nobody waits for them, and they give way to everybody. Blocks that
        pins hold are not free.
        """
        own_running = len(self.running) - self._running.num_up_to(OWN - 1)
        own_waiting = self.pins.num_own - own_running
        allocated = (self.pool.num_blocks - self.pool.num_free) * self.block_size
        return Load(
            running=len(self.running) - own_running,
            waiting=self.num_waiting - own_waiting,
            free_blocks=self.pool.num_free,
            total_blocks=self.pool.num_blocks,
            allocated_slots=allocated,
            used_slots=allocated - self._counts.num_empty,
            preemptions=self.num_preemptions,
        )

    def check_integrity(self) -> None:
        """Asserts that the pool and the running sequences agree; see BlockPool.check_integrity."""
        self.pool.check_integrity(chain((seq.block_table for seq in self.running), self.tier.held, self.pins.held))
        self.tier.check_integrity()
        self._prefixes.check_integrity(self.running)
        self._running.check_integrity()

    def _make_line(self, rank: int) -> Line:
        if rank in (URGENT, OWN) or self._prefix_wait == 0:
            return Line()
        return Line(Picking(self._prefixes, least=-(-LEAST_TOKENS // self.block_size), longest=self._prefix_wait))

    def _urgent_decode(self) -> bool:
        return self._running.urgent_decode()

    def _advance(self, rank: int, filling: Filling) -> None:
        """The next tokens of running sequences of this rank, as far as the step has room."""
        members, rows = self._running.of_rank(rank)
        if not members:
            return
        counts = self._turns.shares(members, self._counts.owed(rows), rank, filling)
        chosen = np.flatnonzero(counts)
        if len(chosen) < len(members):
            members, rows, counts = [members[i] for i in chosen.tolist()], rows[chosen], counts[chosen]
        stay = self._find_blocks(members, rows, counts, filling)
        if stay > 0:
            filling.charge(int(counts[:stay].sum()), stay)
            self._running.book(members[:stay], rows[:stay], counts[:stay], filling)

    def _find_blocks(self, members: list[Sequence], rows: np.ndarray, counts: np.ndarray, filling: Filling) -> int:
        """Gives running sequences the blocks for their next tokens.

        Where there are too few, the last of all are preempted, of `members` too. Pins give way to the one that is left.
        Returns how many of `members` are left.
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
            if len(self.running) == 1 and not members[0].is_own and self.pins.give_way():
                continue
            self._admission.preempt_last(filling)
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

    def _register_prompts(self, step: Step) -> None:
        """Makes the blocks findable that the step has filled with what others may ask for now."""
        for part in np.flatnonzero(step.known).tolist():
            if step.seqs[part].state is SequenceState.RUNNING:
                start = int(step.starts[part])
                self._prefixes.register(step.seqs[part], start, start + int(step.counts[part]))

    def _leave(self, seq: Sequence) -> None:
        """Forgets a sequence that runs or waits."""
        self._admission.leave(seq)
        del self._sequences[seq.seq_id]
