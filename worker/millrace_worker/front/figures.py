"""What a front counts for its metrics. Everything here belongs to the loop; labels come from closed sets."""

from __future__ import annotations

from collections import Counter

from millrace_schemas import ErrorCode, JobState, Lane
from millrace_schemas.exposition import Histogram
from millrace_worker.frames import StepOutput
from millrace_worker.stream.closing import Ending

#: Upper ends of buckets, in seconds: a token or a step takes milliseconds, ...
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5, 10)
#: ... and a job anything from that to a night in the queue.
_LONG = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14_400, 43_200),
    86_400,
)
_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)


_STATES = {ErrorCode.CANCELLED: JobState.CANCELLED, ErrorCode.DEADLINE_EXCEEDED: JobState.EXPIRED}
#: All of them are there from the start: the first of a kind would otherwise be no increase.
_ENDS = [
    *((lane, JobState.COMPLETED, "") for lane in Lane),
    *((lane, _STATES.get(code, JobState.FAILED), code) for lane in Lane for code in ErrorCode),
]


def _by_lane() -> dict[Lane, Histogram]:
    return {lane: Histogram(_LONG) for lane in Lane}


class Figures:
    """Counts and histograms since the worker started."""

    def __init__(self) -> None:
        self.queue_time = _by_lane()
        self.first_token = _by_lane()
        self.latency = _by_lane()
        self.inter_token = Histogram(_SHORT)
        self.step_seconds = Histogram(_SHORT)
        self.batch_size = Histogram(_SEQUENCES)
        self.step_tokens = Histogram(_TOKENS)
        #: By lane, state and code of the error ("" of a completed job).
        self.finished: Counter[tuple[str, str, str]] = Counter(dict.fromkeys(_ENDS, 0))
        self.leased: Counter[Lane] = Counter()
        self.redelivered: Counter[Lane] = Counter()
        self.dead = 0
        self.lost = 0
        self.engine_deaths = 0
        self._preemptions = 0
        self._preemptions_before = 0

    @property
    def preemptions(self) -> int:
        """Of all engines that this front has had."""
        return self._preemptions_before + self._preemptions

    def engine_died(self) -> None:
        self.engine_deaths += 1
        # The next one counts from 0.
        self._preemptions_before, self._preemptions = self.preemptions, 0

    def stepped(self, frame: StepOutput) -> None:
        self._preemptions = frame.load.preemptions
        if frame.sequences:
            self.step_seconds.observe(frame.seconds)
            self.batch_size.observe(frame.sequences)
            self.step_tokens.observe(frame.batched_tokens)

    def generated(self, now: float, after: dict[float, int]) -> None:
        """A step's tokens: how many came after a token of their answer from which time. time.monotonic()."""
        for before, count in after.items():
            self.inter_token.observe(now - before, count)

    def ended(self, ending: Ending) -> None:
        """A job whose end is written."""
        result, lane = ending.result, ending.lease.lane
        self.finished[lane, result.state, result.error.code if result.error else ""] += 1
        self.dead += ending.dead is not None
        if result.error is None:
            self.latency[lane].observe(result.timings.total)
