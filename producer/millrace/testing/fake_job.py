"""One job in memory, and the moves that a worker makes with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from millrace.queue_stats import Failure
from millrace_schemas import (
    Choice,
    ErrorInfo,
    Event,
    Finished,
    FinishReason,
    JobEvent,
    JobRecord,
    JobState,
    Request,
    Result,
    Started,
    Timings,
    Tokens,
    Usage,
    WebhookRecord,
    advance,
)

from .answers import Ending, count_prompt, split, token_id

#: The name of the only worker there is.
WORKER = "fake"
_MOVES = {
    JobState.COMPLETED: JobEvent.COMPLETE,
    JobState.FAILED: JobEvent.FAIL,
    JobState.CANCELLED: JobEvent.CANCEL,
    JobState.EXPIRED: JobEvent.EXPIRE,
}


@dataclass(eq=False, slots=True)
class FakeJob:
    """A job as its worker sees it, live; times are Unix seconds. For looking: the fake's methods move it."""

    id: str
    request: Request
    idempotency_key: str | None
    created_at: float
    vocab_size: int = field(repr=False)
    state: JobState = JobState.QUEUED
    attempts: int = 0
    started_at: float | None = None
    finished_at: float | None = None
    cancel_requested: bool = False
    #: What the model has said so far.
    text: str = ""
    token_ids: list[int] = field(default_factory=list, repr=False)
    result: Result | None = field(default=None, repr=False)
    #: What `events()` yields, with the ids of the events; empty without stream=True.
    events: list[tuple[str, Event]] = field(default_factory=list, repr=False)
    #: An answer that is decided and not yet given, and when it will be.
    due: tuple[float, Ending] | None = field(default=None, repr=False)
    _first_token_at: float | None = field(default=None, repr=False)

    @property
    def record(self) -> JobRecord:
        return JobRecord(
            id=self.id,
            state=self.state,
            attempts=self.attempts,
            created_at=self.created_at,
            started_at=self.started_at,
            finished_at=self.finished_at,
            worker=WORKER if self.attempts else None,
            cancel_requested=self.cancel_requested,
            tenant=self.request.tenant,
            webhook=None if self.request.webhook is None else WebhookRecord(),
        )

    def failure(self) -> Failure:
        """Of a job that failed or expired."""
        assert self.result is not None
        assert self.result.error is not None
        assert self.finished_at is not None
        error = self.result.error
        return Failure(
            model=self.request.model,
            at=self.finished_at,
            job=self.id,
            lane=self.request.lane,
            code=error.code,
            reason=error.message,
            attempts=self.attempts,
        )

    def start(self, now: float) -> None:
        """Raises IllegalTransition when the job has ended."""
        self.state = advance(self.state, JobEvent.LEASE)
        self.attempts += 1
        self.started_at = now
        self._publish(Started(attempt=self.attempts))

    def say(self, pieces: Iterable[str], now: float) -> None:
        """Goes on with the answer, a token a piece."""
        for piece in pieces:
            self._add((token_id(piece, self.vocab_size),), piece, now)

    def end(self, ending: Ending, now: float) -> None:
        """Raises IllegalTransition when the job has ended, ValueError on another text than what was said before."""
        state = advance(self.state, _MOVES[ending.state])
        if ending.result is not None:
            result = self._given_result(ending.result, now)
        elif ending.error is not None:
            result = self._result(state, FinishReason.LENGTH, ending.error, now)
        else:
            self._say_rest(ending.pieces, now)
            result = self._result(state, FinishReason.STOP, None, now)
        self.finish(result, now)

    def finish(self, result: Result, now: float) -> None:
        """Ends the job with a result that is ready."""
        self.result, self.state, self.finished_at, self.due = result, result.state, now, None
        self._publish(Finished(result))

    def _say_rest(self, pieces: tuple[str, ...], now: float) -> None:
        if self.text:
            pieces = split(self._rest("".join(pieces)))
        self.say(pieces, now)

    def _rest(self, text: str) -> str:
        if not text.startswith(self.text):
            raise ValueError(f"{self.id} has already said {self.text!r:.80}; its answer begins so, not {text!r:.80}")
        return text[len(self.text) :]

    def _add(self, ids: tuple[int, ...], text: str, now: float) -> None:
        if self._first_token_at is None:
            self._first_token_at = now
        self._publish(Tokens(start=len(self.token_ids), token_ids=ids, text=text))
        self.token_ids += ids
        self.text += text

    def _given_result(self, result: Result, now: float) -> Result:
        """A test's own result, made this job's."""
        rest = self._rest(result.text)
        if rest:
            self._add(result.choices[0].token_ids[len(self.token_ids) :], rest, now)
        return msgspec.structs.replace(
            result,
            id=self.id,
            model=self.request.model,
            timings=self._timings(now),
            attempts=self.attempts,
            worker=WORKER,
            metadata=self.request.metadata,
            location=self._location(),
        )

    def _result(self, state: JobState, reason: FinishReason, error: ErrorInfo | None, now: float) -> Result:
        choices = (Choice(0, self.text, tuple(self.token_ids), reason),)
        return Result(
            id=self.id,
            model=self.request.model,
            state=state,
            choices=choices if error is None or self.token_ids else (),
            error=error,
            usage=Usage(count_prompt(self.request), len(self.token_ids)) if self.attempts else Usage(),
            timings=self._timings(now),
            attempts=self.attempts,
            worker=WORKER if self.attempts else None,
            metadata=self.request.metadata,
            location=self._location(),
        )

    def _timings(self, now: float) -> Timings:
        begun = now if self.started_at is None else self.started_at
        ttft = None if self._first_token_at is None else self._first_token_at - begun
        return Timings(begun - self.created_at, ttft, now - self.created_at)

    def _location(self) -> str | None:
        """Where a worker would have put the result."""
        target = self.request.result_to
        return None if target == "redis" else f"{target.rstrip('/')}/{self.id}.{self.attempts}.json"

    def _publish(self, event: Event) -> None:
        if self.request.stream:
            self.events.append((f"{int(self.created_at * 1000)}-{len(self.events) + 1}", event))
