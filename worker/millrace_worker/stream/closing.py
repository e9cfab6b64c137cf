"""How a lease ends: with the job's result, or by giving the job back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Literal

from millrace_schemas import GROUP, ErrorCode, Finished, JobState, QueueKeys, Request, Result, encode

from .lease import HANDED_OVER, HANDOVER_IDLE, LIVE_TTL, Lease, LeasedJob
from .progress import Progress
from .scripts import FINISH, REQUEUE, Call

#: Ends that nobody asked for.
_FAILED = frozenset({JobState.FAILED, JobState.EXPIRED})
#: Characters of a reason in the stream of failures.
_REASON = 500


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Why a job goes to the dead stream besides ending as failed."""

    code: ErrorCode
    reason: str
    #: The bytes at fault, for whoever looks.
    data: bytes = b""


@dataclass(slots=True, eq=False)
class Ending:
    """The result that ends a job. Without a consumer it ends a queued job, on behalf of the queue."""

    lease: Lease
    result: Result
    progress: Progress | None = None
    #: "redis", or "s3://bucket/prefix".
    result_to: str = "redis"
    dead: DeadLetter | None = None
    owned: bool = True
    #: None: its bytes are no request.
    request: Request | None = None
    #: None: it was in the queue.
    leased: LeasedJob | None = None
    done: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    tries: int = 0
    _last_event: bytes | None = None
    _body: tuple[Result, bytes] | None = None

    def body(self) -> bytes:
        """The result as it is stored; made once for each one that the ending has."""
        if self._body is None or self._body[0] is not self.result:
            self._body = self.result, encode(self.result)
        return self._body[1]

    def call(self, keys: QueueKeys, consumer: str, ttl: int) -> Call:
        lease, job = self.lease, self.lease.job_id
        if self._last_event is None:
            self._last_event = self.progress.last_event() if self.progress else b""
        # Nobody reads the events of a job that does not stream, and the result in them may be long.
        streams = self.progress is None or self.progress.stream
        last = encode(Finished(self.result)) if streams else b""
        dead: tuple[str | bytes | int, ...] = ()
        if self.dead is not None:
            dead = ("job", job, "entry", lease.entry, "lane", lease.lane, "code", self.dead.code)
            dead += ("reason", self.dead.reason, "attempts", lease.attempt, "data", self.dead.data)
        failure = self._failure()
        return Call(
            FINISH,
            (
                *(keys.job(job), keys.result(job), keys.tokens(job), keys.events(job), keys.lanes[lease.lane]),
                *(keys.deadlines, keys.delayed, keys.dead, keys.done(job), keys.webhooks, keys.unfinished_prefix),
                keys.failures,
            ),
            (
                *(consumer if self.owned else "", lease.attempt, GROUP, lease.entry, job, self.result.state),
                *(self.body(), self._last_event, last, ttl, len(failure), *failure, *dead),
            ),
        )

    def _failure(self) -> tuple[str | int, ...]:
        """Fields of an entry for the stream of failures; none when the job did not fail."""
        error = self.result.error
        if self.result.state not in _FAILED or error is None:
            return ()
        return (
            *("job", self.lease.job_id, "lane", self.lease.lane, "code", error.code),
            *("reason", error.message[:_REASON], "attempts", self.result.attempts),
        )


@dataclass(slots=True, eq=False)
class GiveBack:
    """A job for another attempt: "retry" after `delay` seconds, or "handover" to another worker at once."""

    lease: Lease
    mode: Literal["retry", "handover"]
    progress: Progress | None = None
    delay: float = 0.0
    done: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    tries: int = 0

    def call(self, keys: QueueKeys, consumer: str, ttl: int) -> Call:
        lease, job = self.lease, self.lease.job_id
        return Call(
            REQUEUE,
            (keys.job(job), keys.lanes[lease.lane], keys.delayed, keys.deadlines),
            (
                *(consumer, lease.attempt, GROUP, lease.entry, job, self.mode, self.delay),
                *(LIVE_TTL, HANDED_OVER, HANDOVER_IDLE),
            ),
        )
