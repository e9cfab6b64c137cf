"""A leased job while this front runs it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from millrace_schemas import FinishReason, Lane, Request
from millrace_worker.frames import AddSequence, Likely, SequenceParams, Started
from millrace_worker.stream.checkpoint import read_words
from millrace_worker.stream.lease import LeasedJob
from millrace_worker.stream.progress import Progress

from .logprobs import AnswerLogprobs
from .text import GrowingText, TextTools


class Job:
    """Request, tokens so far, text so far, and what happened to it here."""

    def __init__(
        self,
        leased: LeasedJob,
        request: Request,
        prompt: list[int],
        params: SequenceParams,
        tools: TextTools,
    ):
        self.leased = leased
        self.lease = leased.lease
        self.id = leased.lease.job_id
        self.request = request
        self.prompt = prompt
        self.params = params
        self._tools = tools
        sampling = request.sampling
        self.generated, likely = read_words(leased.checkpoint, sampling.logprobs)
        self.logprobs: AnswerLogprobs | None = None
        if sampling.logprobs is not None:
            self.logprobs = AnswerLogprobs(sampling.logprobs, self.generated, likely, tools.tokenizer)
        self.progress = Progress(self.lease, self.generated, stream=leased.stream, logprobs=self.logprobs)
        self._text: GrowingText | None = None
        if tools.tokenizer is not None and (leased.stream or sampling.stop):
            self._text = GrowingText(tools, tools.tokenizer, sampling.stop, sampling.min_tokens)
        #: Id in the engine; a new one for each engine that runs it.
        self.seq_id: int | None = None
        #: Whether the engine has scheduled it; before that its prompt waits for blocks.
        self.scheduled = False
        #: What of its prompt the prefix cache had.
        self.cached_tokens = 0
        self.cached_by_tier: dict[str, int] = {}
        #: Tokens at the beginning of the prompt that a job before it had, too.
        self.shared_tokens = 0
        #: Engine crashes that it was part of and that no other job was found guilty of.
        self.crashes: set[int] = set()
        self.deadline_timer: asyncio.TimerHandle | None = None
        self._taken_at = time.monotonic()
        self.ttft: float | None = None
        #: When its newest token came here, of time.monotonic(); None before the first.
        self.token_at: float | None = None

    def begin(self, started: Started) -> None:
        """The engine has scheduled it."""
        self.scheduled, self.cached_tokens, self.cached_by_tier = True, started.cached, started.by_tier

    @property
    def deliveries(self) -> int:
        """Times that something began to run this job: leases counted by Redis, and engines that died under it here."""
        return self.lease.attempt + len(self.crashes)

    def must_run_alone(self, max_attempts: int) -> bool:
        """Whether this is its last delivery after others went wrong: it may be what kills engines."""
        return 1 < self.deliveries >= max_attempts

    def sequence(self, seq_id: int) -> AddSequence:
        """What a fresh engine needs to go on with it."""
        self.seq_id = seq_id
        self.scheduled = False
        priority = 0 if self.lease.lane is Lane.INTERACTIVE else 1
        # A copy: the frame is packed later, and must not hold tokens that came after.
        return AddSequence(seq_id, self.prompt, list(self.generated), self.params, priority)

    def resume(self) -> FinishReason | None:
        """Replays the checkpoint into the text; the reason when the answer turns out to be complete."""
        if not self.generated:
            return None
        ids = self.generated
        ended = ids[-1] in self.params.stop_token_ids and len(ids) > self.params.min_tokens
        if self._text is not None:
            _, used = self._text.push(ids[:-1] if ended else ids)
            if self._text.stopped:
                del ids[used:]
                if self.logprobs is not None:
                    del self.logprobs.likely[used:]
                return FinishReason.STOP
        if ended:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(ids) >= self.params.max_tokens else None

    def take(self, ids: Sequence[int], likely: Sequence[Likely] = (), *, ended_by_token: bool) -> bool:
        """Adds tokens that the engine generated; True when a stop string ended the answer.

        `likely` belongs to them, where it was asked for. `ended_by_token`: the last of them is a stop token, which is
        no part of the text.
        """
        if self.ttft is None and ids:
            self.ttft = time.monotonic() - self._taken_at
        if self._text is None:
            self._keep(ids, likely)
            return False
        visible = ids[:-1] if ended_by_token else ids
        text, used = self._text.push(visible)
        self._keep(visible[:used] if self._text.stopped else ids, likely)
        if self.progress.stream:
            self.progress.add_text(text)
        return self._text.stopped

    def _keep(self, ids: Sequence[int], likely: Sequence[Likely]) -> None:
        self.generated += ids
        if self.logprobs is not None:
            self.logprobs.likely += likely[: len(ids)]

    def close_text(self, *, ended_by_token: bool) -> str:
        """The whole text at the end; what was held back of a streamed answer is published with its last event."""
        tokenizer = self._tools.tokenizer
        if tokenizer is None:
            return ""
        if self._text is None:
            return tokenizer.decode(self.generated[:-1] if ended_by_token else self.generated)
        rest = self._text.finish()
        if self.progress.stream:
            self.progress.add_text(rest)
        return self._text.text

    @property
    def stopped_by_text(self) -> bool:
        return self._text is not None and self._text.stopped

    @property
    def first_token_after(self) -> float | None:
        """Seconds from `submit` to the first token; None where an earlier attempt may have made it."""
        if self.ttft is None or self.lease.attempt > 1 or self.leased.checkpoint:
            return None
        return max(0.0, self.leased.started_at - self.leased.created_at) + self.ttft

    def stop_timer(self) -> None:
        if self.deadline_timer is not None:
            self.deadline_timer.cancel()
            self.deadline_timer = None
