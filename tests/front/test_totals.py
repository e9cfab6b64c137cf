"""What a heartbeat tells of the jobs that ended."""

from __future__ import annotations

from millrace_schemas import JobState, Lane, Latencies, Result, Timings, bucket_of
from millrace_worker.front.totals import Totals


def result(state: JobState = JobState.COMPLETED, attempts: int = 1, ttft: float | None = 0.5) -> Result:
    timings = Timings(queued=1.0, ttft=ttft, total=4.0)
    return Result(id="j", model="letters", state=state, timings=timings, attempts=attempts)


def test_latencies_are_counted_from_submit_by_lane() -> None:
    totals = Totals()
    assert totals.latencies() == {}
    totals.ended(Lane.BATCH, result())
    totals.ended(Lane.BATCH, result(ttft=None))
    # Its first token came out of an attempt that nobody timed.
    totals.ended(Lane.BATCH, result(attempts=2))
    for state in (JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED):
        totals.ended(Lane.INTERACTIVE, result(state))
    assert totals.finished == 6
    counted = Latencies(first_token={bucket_of(1.5): 1}, total={bucket_of(4.0): 3})
    assert totals.latencies() == {Lane.BATCH: counted}
