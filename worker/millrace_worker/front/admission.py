"""Which jobs this front holds, how many more it should lease, and which of them the engine gets now."""

from __future__ import annotations

from collections.abc import Iterator

from millrace_schemas import Lane
from millrace_worker.frames import Load, Ready
from millrace_worker.stream.room import Room

from .beginnings import Beginnings
from .job import Job

#: The look-ahead is this share of the engine's rows, and at least _LEAST_AHEAD jobs.
_AHEAD_SHARE = 8
_LEAST_AHEAD = 8
#: Beyond the seats that the lanes share, each of them has an eighth as many to itself.
_OWN_SHARE = 8


class Admission:
    """The jobs of this front, by id and by the engine's sequence id.

    A job on its last delivery runs alone: nothing else enters the engine while it is there, and it enters an empty one.
    Adding, admitting and removing a job cost the same however many there are.
    """

    def __init__(self, max_attempts: int):
        self._max_attempts = max_attempts
        self._jobs: dict[str, Job] = {}
        self._in_engine: dict[int, Job] = {}
        self._waiting: dict[str, Job] = {}
        #: Those that have to run alone.
        self._alone: set[Job] = set()
        self._next_seq_id = 1
        self._beginnings = Beginnings()
        #: Jobs leased whose prompts are being tokenized.
        self._preparing = dict.fromkeys(Lane, 0)

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs.values()))

    def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def by_sequence(self, seq_id: int) -> Job | None:
        return self._in_engine.get(seq_id)

    @property
    def in_engine(self) -> list[Job]:
        return list(self._in_engine.values())

    @property
    def num_waiting(self) -> int:
        """Jobs that are to be given to the engine."""
        return len(self._waiting)

    @property
    def preparing(self) -> int:
        """Jobs leased whose prompts are being tokenized."""
        return sum(self._preparing.values())

    def prepares(self, lane: Lane, change: int) -> None:
        """`change` more jobs of this lane are being prepared."""
        self._preparing[lane] += change

    @property
    def engine_busy(self) -> bool:
        return bool(self._in_engine)

    def add(self, job: Job) -> None:
        self._jobs[job.id] = self._waiting[job.id] = job
        job.shared_tokens = self._beginnings.shared(job.params.cache_salt, job.prompt)
        if job.must_run_alone(self._max_attempts):
            self._alone.add(job)

    def judge(self) -> None:
        """Looks again at who has to run alone; to be called when crashes were counted or forgiven."""
        self._alone = {job for job in self._jobs.values() if job.must_run_alone(self._max_attempts)}

    def remove(self, job: Job) -> int | None:
        """Forgets the job; its sequence id when the engine has it."""
        if self._jobs.get(job.id) is job:
            del self._jobs[job.id]
            self._waiting.pop(job.id, None)
        self._alone.discard(job)
        seq_id, job.seq_id = job.seq_id, None
        return seq_id if seq_id is not None and self._in_engine.pop(seq_id, None) is job else None

    def left_engine(self, job: Job) -> None:
        """The engine says that it is done with this job."""
        if job.seq_id is not None:
            self._in_engine.pop(job.seq_id, None)

    def engine_gone(self) -> None:
        """The engine died: every job waits for the next one."""
        for job in self._in_engine.values():
            job.seq_id = None
        self._in_engine.clear()
        self._waiting = dict(self._jobs)

    def admit(self) -> list[tuple[Job, int]]:
        """Jobs that the engine gets now, with the sequence ids that they have there from now on."""
        if not self._waiting or any(job.seq_id is not None for job in self._alone):
            return []
        chosen = [job for job in self._waiting.values() if job not in self._alone]
        if not chosen and not self._in_engine:
            # The newest first: an engine mostly dies on first contact, and once the guilty one is found the others run
            # together again.
            chosen = [next(reversed(self._waiting.values()))]
        admitted = []
        for job in chosen:
            seq_id, self._next_seq_id = self._next_seq_id, self._next_seq_id + 1
            # Set here, so that a job admitted and removed before its frame is packed is aborted, not lost.
            job.seq_id = seq_id
            self._in_engine[seq_id] = job
            del self._waiting[job.id]
            admitted.append((job, seq_id))
        return admitted

    def room(self, ready: Ready, load: Load) -> Room:
        """Jobs to lease now: free rows and a small look-ahead, as long as the waiting prompts find free blocks.

        Blocks of a beginning that another job had lately are not waited for again. A full batch lane keeps neither
        seats nor blocks from the interactive one, to which the engine gives them.
        """
        if self._alone:
            return Room(0)
        held = dict(self._preparing)
        #: Blocks of jobs that wait for them, and of interactive ones that may have theirs.
        needed, kept = dict.fromkeys(Lane, 0), 0
        for job in self._jobs.values():
            lane = job.lease.lane
            held[lane] += 1
            if not job.scheduled:
                needed[lane] += _blocks(job, ready.block_size) - job.shared_tokens // ready.block_size
            elif lane is Lane.INTERACTIVE:
                kept += _blocks(job, ready.block_size)
        # An idle engine may have sent no frame since its last sequence was aborted.
        free = load.free_blocks if self._in_engine else ready.num_blocks
        urgent, all_needed = needed[Lane.INTERACTIVE], sum(needed.values())
        full = set()
        if urgent and urgent >= max(free, ready.num_blocks - kept):
            full.add(Lane.INTERACTIVE)
        if all_needed and all_needed >= free:
            full.add(Lane.BATCH)
        seats = ready.max_num_seqs + max(_LEAST_AHEAD, ready.max_num_seqs // _AHEAD_SHARE)
        own = {lane: seats // _OWN_SHARE - count for lane, count in held.items()}
        return Room(seats - sum(held.values()), own, frozenset(full))


def _blocks(job: Job, block_size: int) -> int:
    return -(-(len(job.prompt) + len(job.generated) + 1) // block_size)
