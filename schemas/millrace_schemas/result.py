"""What a worker writes back when a job reaches a terminal state."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from .errors import ErrorInfo
from .logprobs import TokenLogprob
from .states import JobState


class FinishReason(StrEnum):
    #: The model ended the answer, or a stop string or stop token did.
    STOP = "stop"
    #: max_tokens, or the end of the model's context.
    LENGTH = "length"
    #: The job ended before its answer did: cancelled, expired or failed.
    ABORT = "abort"


class Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One answer. `token_ids` holds every generated id, the one that stopped it included."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    #: One for each of `token_ids`; None, and not written, when `Sampling.logprobs` asked for none.
    logprobs: tuple[TokenLogprob, ...] | None = None


#: The tier that a worker has without any configuration.
_DEVICE = "gpu"


class Usage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Token counts, as OpenAI's usage. `cached_tokens` of the prompt came from the prefix cache."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    #: `cached_by_tier` as it is written: only where a tier below the device's memory had some, because releases
    #: before this field refuse it.
    tiers: dict[str, int] | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="cached_by_tier")

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int, cached_tokens: int, by_tier: dict[str, int]) -> Usage:
        """`by_tier`: what of `cached_tokens` each tier had."""
        has_lower = len(by_tier) > (_DEVICE in by_tier)
        return cls(prompt_tokens, completion_tokens, cached_tokens, by_tier if has_lower else msgspec.UNSET)

    @property
    def cached_by_tier(self) -> dict[str, int]:
        """`cached_tokens` by the tier of the cache that had them: "gpu" (the device's memory, be it a CPU's), "cpu"
        (host memory), "disk", "s3". Only those that had some.
        """
        if isinstance(self.tiers, dict):
            return self.tiers
        return {_DEVICE: self.cached_tokens} if self.cached_tokens else {}

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Timings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds. The clock of the worker that finished the job, corrected to Redis time for `queued` and `total`."""

    #: Submitted until the first lease.
    queued: float = 0.0
    #: Leased (by the worker that finished it) until the first token; None if there was none.
    ttft: float | None = None
    #: Submitted until finished.
    total: float = 0.0


class Result(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The one visible result of a job; it never changes once it can be read.

    In state `completed` it has choices and no error; in every other terminal state an error, and in `choices` whatever
    text there was when the job ended.
    """

    id: str
    model: str
    state: JobState
    choices: tuple[Choice, ...] = ()
    error: ErrorInfo | None = None
    usage: Usage = Usage()
    timings: Timings = Timings()
    attempts: int = 0
    worker: str | None = None
    metadata: dict[str, str] = {}
    #: Where the whole result is when it is not here: "s3://bucket/key". `choices` is then empty.
    location: str | None = None

    @property
    def text(self) -> str:
        """The first choice's text; "" when there is none."""
        return self.choices[0].text if self.choices else ""
