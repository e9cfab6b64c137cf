"""What picking batch jobs by their prefixes is worth: the scheduler alone, on a reckoned clock, without any model."""

from __future__ import annotations

import random
import statistics
from collections import Counter, deque

import msgspec

from millrace_worker.engine.block_pool import BlockPool
from millrace_worker.engine.scheduler import Scheduler
from millrace_worker.engine.sequence import Sequence
from millrace_worker.engine.step import Step
from millrace_worker.frames import SequenceParams

_BLOCK_SIZE = 16
_MAX_TOKENS = 8192
#: Grouped decode pays from so many sequences on.
_LEAST_GROUP = 4
#: Of its rows, what the front gives an engine beyond them.
_AHEAD_SHARE = 8
#: A step's seconds, about those of an 8B model in bfloat16 on an H200: its weights, a token of a prompt, a cached token
#: that is read. They move the scheduler's clock.
_STEP, _PROMPT_TOKEN, _CACHED_TOKEN = 0.005, 20e-6, 33e-9


class Traffic(msgspec.Struct, frozen=True):
    """Batch jobs of several system prompts, in random order."""

    jobs: int
    systems: int
    system_tokens: int
    own_tokens: int
    #: Answers have half as many to three halves.
    answer_tokens: int
    rows: int
    blocks: int
    #: Jobs beyond the rows that the engine has; None: as many as the front gives it.
    ahead: int | None = None


class Picked(msgspec.Struct, frozen=True):
    """What came of it; means over several orders of arrival."""

    prefix_wait: float
    #: Tokens of system prompts that were computed, over those that computing each once takes.
    computed: float
    #: Sequences that decode together behind one copy of a system prompt, as one of them sees it.
    group: float
    #: Share of them whose group is large enough to pay.
    grouped: float
    #: Sequences that run.
    running: float
    preemptions: float
    #: Of the reckoned clock: all jobs, and the longest that one waited in the engine.
    seconds: float
    longest_wait: float


def run(traffic: Traffic, prefix_wait: float, orders: int) -> Picked:
    """All jobs, from an empty engine to an empty engine, in so many random orders."""
    runs = [_Simulation(traffic, prefix_wait, random.Random(seed)).run() for seed in range(orders)]
    means = (statistics.fmean(getattr(run, name) for run in runs) for name in Picked.__struct_fields__)
    return Picked(*(round(mean, 2) for mean in means))


class _Simulation:
    def __init__(self, traffic: Traffic, prefix_wait: float, draw: random.Random) -> None:
        self._traffic, self._prefix_wait = traffic, prefix_wait
        self._scheduler = Scheduler(
            BlockPool(traffic.blocks),
            block_size=_BLOCK_SIZE,
            max_num_seqs=traffic.rows,
            max_num_batched_tokens=_MAX_TOKENS,
            prefix_wait=prefix_wait,
        )
        self._due = deque(_jobs(traffic, draw))
        #: When those that wait in the engine came there.
        self._given: dict[int, float] = {}
        self._now = self._longest_wait = 0.0
        self._computed = self._steps = self._running = 0
        self._decoding = self._squares = self._grouped = 0

    def run(self) -> Picked:
        scheduler, traffic = self._scheduler, self._traffic
        while self._due or scheduler.has_work:
            self._give()
            step = scheduler.schedule(self._now)
            if step is None:
                raise RuntimeError(f"{traffic.blocks} blocks are too few for a job")
            for started in scheduler.started:
                self._longest_wait = max(self._longest_wait, self._now - self._given.pop(started.seq_id))
            scheduler.started.clear()
            self._count(step)
            scheduler.complete(step, [7] * len(step.sampling))
        return Picked(
            prefix_wait=self._prefix_wait,
            computed=self._computed / (traffic.systems * traffic.system_tokens),
            group=self._squares / self._decoding,
            grouped=self._grouped / self._decoding,
            running=self._running / self._steps,
            preemptions=scheduler.num_preemptions,
            seconds=self._now,
            longest_wait=self._longest_wait,
        )

    def _give(self) -> None:
        """As the front does: rows and a look-ahead, while what waits finds free blocks for what is its own."""
        scheduler, traffic = self._scheduler, self._traffic
        own = -(-(traffic.own_tokens + 1) // _BLOCK_SIZE)
        seats = traffic.rows + (traffic.rows // _AHEAD_SHARE if traffic.ahead is None else traffic.ahead)
        while self._due and len(scheduler.running) + scheduler.num_waiting < seats:
            if scheduler.num_waiting and scheduler.num_waiting * own >= scheduler.pool.num_free:
                return
            seq = self._due.popleft()
            self._given[seq.seq_id] = self._now
            scheduler.add(seq)

    def _count(self, step: Step) -> None:
        """What of the step was whose, and how long it took."""
        system = self._traffic.system_tokens
        last = system // _BLOCK_SIZE - 1
        groups: Counter[int] = Counter()
        read = 0
        for part in step.scheduled:
            self._computed += max(0, min(part.start + part.count, system) - part.start)
            if part.count == 1 and part.start >= system:
                groups[part.seq.block_table[last]] += 1
                read += part.start - system
        sizes = groups.values()
        self._decoding += sum(sizes)
        self._squares += sum(size * size for size in sizes)
        self._grouped += sum(size for size in sizes if size >= _LEAST_GROUP)
        self._steps += 1
        self._running += len(self._scheduler.running)
        read += system * sum(1 if size >= _LEAST_GROUP else size for size in sizes)
        self._now += _STEP + _PROMPT_TOKEN * step.num_tokens + _CACHED_TOKEN * read


def _jobs(traffic: Traffic, draw: random.Random) -> list[Sequence]:
    systems = [[draw.randrange(50_000) for _ in range(traffic.system_tokens)] for _ in range(traffic.systems)]
    jobs = []
    for number in range(traffic.jobs):
        prompt = [*systems[number % traffic.systems], *(draw.randrange(50_000) for _ in range(traffic.own_tokens))]
        answer = draw.randint(traffic.answer_tokens // 2, traffic.answer_tokens * 3 // 2)
        jobs.append((prompt, answer))
    draw.shuffle(jobs)
    return [
        Sequence(number, prompt, [], SequenceParams(max_tokens=answer), priority=1)
        for number, (prompt, answer) in enumerate(jobs)
    ]
