"""What becomes of a leased job: one that runs, one that ends, or one that goes back while the worker drains."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from millrace_schemas import ErrorCode, ErrorInfo, InvalidRequest, Request
from millrace_schemas.aio import unless_set
from millrace_worker.frames import Ready
from millrace_worker.stream.closing import DeadLetter, Ending, GiveBack
from millrace_worker.stream.lease import LeasedJob, Verdict

from .intake import prepare, read_request
from .job import Job
from .outcome import Signature
from .text import TextTools

log = structlog.get_logger(__name__)

#: Bytes of a request from which preparing it may take a thread, and long.
_LONG_REQUEST = 8192


def is_long(leased: LeasedJob) -> bool:
    """Whether the job may take long to prepare: its text is tokenized in a thread."""
    return len(leased.request) > _LONG_REQUEST


class Preparation:
    """Makes jobs of leased ones, until `stop`."""

    def __init__(
        self,
        tools: TextTools,
        signature: Signature,
        now: Callable[[], float],
        pin: Callable[[Job, Ready], Awaitable[None]],
    ):
        """`now` is Redis time; `pin` pins what a job begins with, and never fails."""
        self._tools = tools
        self._signature = signature
        self._now = now
        self._pin = pin
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Jobs that would run go back from now on: unprepared, without waiting for those that are being tokenized."""
        self._stopping.set()

    async def of(self, leased: LeasedJob, ready: Ready) -> Job | Ending | GiveBack:
        """Whatever is wrong with one job's content stays with that job."""
        request: Request | None = None
        now = self._now()
        try:
            if leased.verdict is not Verdict.RUN:
                return self._verdict(leased)
            if self._stopping.is_set() and not leased.cancel_requested:
                return GiveBack(leased.lease, "handover")
            request = read_request(leased)
            if leased.cancel_requested:
                raise InvalidRequest("cancelled before it ran", code=ErrorCode.CANCELLED)
            return await self._job(leased, request, ready)
        except InvalidRequest as e:
            dead = DeadLetter(e.code, str(e), leased.request) if e.code is ErrorCode.UNDECODABLE else None
            return self._signature.refused(leased, request, e.info, now, dead)
        except Exception as e:
            log.exception("a job could not be prepared", job=leased.lease.job_id)
            error = ErrorInfo(ErrorCode.INTERNAL, f"the worker could not prepare the job: {type(e).__name__}: {e}")
            return self._signature.refused(leased, request, error, now)

    async def _job(self, leased: LeasedJob, request: Request, ready: Ready) -> Job | Ending | GiveBack:
        preparing = prepare(leased, request, self._tools, ready)
        # Only what is long is worth the tasks of waiting for either.
        job = await (unless_set(self._stopping, preparing) if is_long(leased) else preparing)
        if job is None:
            return GiveBack(leased.lease, "handover")
        if request.cache == "pin" and not self._stopping.is_set():
            await self._pin(job, ready)
        complete = job.resume()
        if complete is not None:
            return await self._signature.completed(job, complete, self._now())
        return GiveBack(leased.lease, "handover", job.progress) if self._stopping.is_set() else job

    def _verdict(self, leased: LeasedJob) -> Ending:
        now = self._now()
        try:
            request = read_request(leased)
        except InvalidRequest:
            # Only its metadata would be copied: the job ends all the same.
            request = None
        if leased.verdict is Verdict.EXPIRED:
            error = ErrorInfo(ErrorCode.DEADLINE_EXCEEDED, "the deadline passed before the job was done")
            return self._signature.refused(leased, request, error, now)
        reason = f"{leased.lease.attempt} deliveries, and its worker died or lost the lease in each of them"
        error = ErrorInfo(ErrorCode.TOO_MANY_ATTEMPTS, reason)
        dead = DeadLetter(error.code, reason, leased.request)
        return self._signature.refused(leased, request, error, now, dead)
