"""What a worker has done since it started, for its heartbeat."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from millrace_schemas import JobState, Lane, Latencies, Result, bucket_of
from millrace_worker.frames import Started, StepOutput


def _by_lane() -> dict[Lane, Counter[int]]:
    return {lane: Counter() for lane in Lane}


@dataclass(slots=True)
class Totals:
    """Counts since the worker started; slots are sums over the engine's steps."""

    finished: int = 0
    output_tokens: int = 0
    allocated_slots: int = 0
    used_slots: int = 0
    #: Of prompts that the engine began, again after an engine died.
    prompt_tokens: int = 0
    cached_tokens: int = 0
    cached_by_tier: Counter[str] = field(default_factory=Counter)
    #: Of the engine, and those whose attention read something once for several sequences.
    steps: int = 0
    shared_steps: int = 0
    #: Tokens that were so read, and those that were not read again because of it.
    shared_read: int = 0
    shared_saved: int = 0
    _first_token: dict[Lane, Counter[int]] = field(default_factory=_by_lane)
    _total: dict[Lane, Counter[int]] = field(default_factory=_by_lane)

    def stepped(self, frame: StepOutput) -> None:
        self.allocated_slots += frame.load.allocated_slots
        self.used_slots += frame.load.used_slots
        self.steps += frame.sequences > 0
        self.shared_steps += frame.shared_read > 0
        self.shared_read += frame.shared_read
        self.shared_saved += frame.shared_saved

    def begun(self, prompt_tokens: int, started: Started) -> None:
        """The engine has begun a job."""
        self.prompt_tokens += prompt_tokens
        self.cached_tokens += started.cached
        self.cached_by_tier.update(started.by_tier)

    def ended(self, lane: Lane, result: Result) -> None:
        """Counts a job whose end is written."""
        self.finished += 1
        if result.state is not JobState.COMPLETED:
            return
        timings = result.timings
        self._total[lane][bucket_of(timings.total)] += 1
        # After another attempt, `ttft` does not begin where `queued` ends.
        if timings.ttft is not None and result.attempts == 1:
            self._first_token[lane][bucket_of(timings.queued + timings.ttft)] += 1

    def latencies(self) -> dict[Lane, Latencies]:
        """Lanes that completed something. Another thread than that of `ended` may call it: dict() copies in one go."""
        return {
            lane: Latencies(first_token=dict(self._first_token[lane]), total=dict(counts))
            for lane, counts in self._total.items()
            if counts
        }
