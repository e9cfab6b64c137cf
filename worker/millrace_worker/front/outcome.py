"""The results that end jobs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from millrace_schemas import (
    Choice,
    ErrorCode,
    ErrorInfo,
    FinishReason,
    JobState,
    Request,
    Result,
    Timings,
    TokenLogprob,
    Usage,
)
from millrace_worker.stream.closing import DeadLetter, Ending
from millrace_worker.stream.lease import LeasedJob

from .job import Job

_STATES = {ErrorCode.CANCELLED: JobState.CANCELLED, ErrorCode.DEADLINE_EXCEEDED: JobState.EXPIRED}


@dataclass(frozen=True, slots=True)
class Signature:
    """Who writes results: the model's public name and the worker's.

    Results with log-probabilities may take long to put together: one at a time, and the loop goes on meanwhile.
    """

    model: str
    worker: str
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False, compare=False)

    async def completed(self, job: Job, reason: FinishReason, now: float) -> Ending:
        """`now` is Redis time."""
        ended_by_token = reason is FinishReason.STOP and not job.stopped_by_text
        choice = await self._choice(job, reason, ended_by_token=ended_by_token)
        result = Result(
            id=job.id,
            model=self.model,
            state=JobState.COMPLETED,
            choices=(choice,),
            usage=_usage(job),
            timings=_timings(job.leased, now, job.ttft),
            attempts=job.lease.attempt,
            worker=self.worker,
            metadata=job.request.metadata,
        )
        return Ending(job.lease, result, job.progress, job.request.result_to, request=job.request, leased=job.leased)

    async def failed(self, job: Job, error: ErrorInfo, now: float, dead: DeadLetter | None = None) -> Ending:
        """Ends a job that ran; what text there was stays readable."""
        choices: tuple[Choice, ...] = ()
        if job.generated:
            choices = (await self._choice(job, FinishReason.ABORT, ended_by_token=False),)
        result = Result(
            id=job.id,
            model=self.model,
            state=_STATES.get(error.code, JobState.FAILED),
            choices=choices,
            error=error,
            usage=_usage(job),
            timings=_timings(job.leased, now, job.ttft),
            attempts=job.lease.attempt,
            worker=self.worker,
            metadata=job.request.metadata,
        )
        return Ending(
            job.lease, result, job.progress, job.request.result_to, dead, request=job.request, leased=job.leased
        )

    def refused(
        self, leased: LeasedJob, request: Request | None, error: ErrorInfo, now: float, dead: DeadLetter | None = None
    ) -> Ending:
        """Ends a job that never ran here."""
        result = Result(
            id=leased.lease.job_id,
            model=self.model,
            state=_STATES.get(error.code, JobState.FAILED),
            error=error,
            timings=_timings(leased, now, None),
            attempts=leased.lease.attempt,
            worker=self.worker,
            metadata=request.metadata if request else {},
        )
        return Ending(leased.lease, result, dead=dead, request=request, leased=leased)

    async def _choice(self, job: Job, reason: FinishReason, *, ended_by_token: bool) -> Choice:
        text = job.close_text(ended_by_token=ended_by_token)
        logprobs: tuple[TokenLogprob, ...] | None = None
        if job.logprobs is not None:
            async with self._turn:
                logprobs = await job.logprobs.all_told()
        return Choice(0, text, tuple(job.generated), reason, logprobs)


def _usage(job: Job) -> Usage:
    return Usage.of(len(job.prompt), len(job.generated), job.cached_tokens, job.cached_by_tier)


def _timings(leased: LeasedJob, now: float, ttft: float | None) -> Timings:
    queued = max(0.0, leased.started_at - leased.created_at)
    # `now` is as good as the last reply of Redis was quick: a job of a few ms may have ended before its first token.
    return Timings(queued, ttft, max(queued + (ttft or 0.0), now - leased.created_at))
