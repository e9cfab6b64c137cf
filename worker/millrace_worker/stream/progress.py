"""What of a running job's answer is stored and published, and what is not yet."""

from __future__ import annotations

import time
from typing import Protocol

from millrace_schemas import QueueKeys, Started, TokenLogprob, Tokens, encode
from millrace_worker.frames import Likely

from .checkpoint import record_bytes, token_bytes
from .lease import LIVE_TTL, Lease
from .scripts import CHECKPOINT, Call

#: Streaming jobs publish at most this often, in seconds: many small events cost Redis more than they please a reader.
STREAM_INTERVAL = 0.03


class Logprobs(Protocol):
    """What a checkpoint asks of millrace_worker.front.logprobs.AnswerLogprobs."""

    top: int
    likely: list[Likely]

    def told(self, start: int = 0, end: int | None = None) -> tuple[TokenLogprob, ...]: ...


class Progress:
    """The checkpoint of one leased job. A write whose reply was lost is repeated exactly, so events come once.

    `tokens` is the job's own growing list; `text` is what a streaming job's tokens have completed and nobody has read.
    `logprobs` is None for a job that asks for none.
    """

    def __init__(self, lease: Lease, tokens: list[int], *, stream: bool, logprobs: Logprobs | None = None):
        self.lease = lease
        self.tokens = tokens
        self.stream = stream
        self.lost = False
        self._logprobs = logprobs
        self._record = record_bytes(None if logprobs is None else logprobs.top)
        self._text: list[str] = []
        self._stored = len(tokens)
        self._call: Call | None = None
        self._call_upto = 0
        self._written_at = time.monotonic()
        self._start_pending = stream

    @property
    def stored(self) -> int:
        """Tokens that the next owner would find."""
        return self._stored

    @property
    def in_flight(self) -> bool:
        """Whether a write was begun and not confirmed."""
        return self._call is not None

    @property
    def unsaved(self) -> bool:
        return self._call is not None or len(self.tokens) > self._stored

    def add_text(self, text: str) -> None:
        if text:
            self._text.append(text)

    def due(self, now: float, every_tokens: int, every_seconds: float) -> bool:
        """Whether it is time to write; `now` is of time.monotonic()."""
        if self._call is not None:
            return True
        new = len(self.tokens) - self._stored
        age = now - self._written_at
        if self.stream:
            first = self._stored == 0 and new > 0
            return self._start_pending or first or ((new > 0 or bool(self._text)) and age >= STREAM_INTERVAL)
        return new >= every_tokens or (new > 0 and age >= every_seconds)

    def call(self, keys: QueueKeys, consumer: str) -> Call:
        """The write to make now: the unconfirmed one again, or one of everything new."""
        if self._call is None:
            events = [encode(Started(self.lease.attempt, self._stored))] if self._start_pending else []
            self._call_upto = len(self.tokens)
            event = self.last_event()
            if event:
                events.append(event)
            job = self.lease.job_id
            self._start_pending = False
            fence = (consumer, self.lease.attempt, self._stored * self._record)
            self._call = Call(
                CHECKPOINT,
                (keys.job(job), keys.tokens(job), keys.events(job)),
                (*fence, self._new_bytes(), LIVE_TTL, self._record, *events),
            )
        return self._call

    def last_event(self) -> bytes:
        """The event of everything not published yet, b"" when there is nothing; it then counts as taken."""
        new, text = self.tokens[self._stored :], "".join(self._text)
        if not self.stream or not (new or text):
            return b""
        self._text.clear()
        logprobs = None if self._logprobs is None else self._logprobs.told(self._stored)
        return encode(Tokens(self._stored, tuple(new), text, logprobs=logprobs))

    def _new_bytes(self) -> bytes:
        new = slice(self._stored, self._call_upto)
        if self._logprobs is None:
            return token_bytes(self.tokens[new])
        return token_bytes(self.tokens[new], self._logprobs.likely[new], self._logprobs.top)

    def confirm(self, stored_bytes: int) -> None:
        """The reply to `call`: bytes now stored, or -1 for a lost lease."""
        self._call = None
        self._written_at = time.monotonic()
        if stored_bytes < 0:
            self.lost = True
        elif stored_bytes < self._stored * self._record:
            # The checkpoint vanished (evicted or deleted) while we ran: the next write carries all of it.
            self._stored = 0
        else:
            self._stored = self._call_upto
