"""What `events()` yields while a job runs: one tagged union, in the order that things happened."""

from __future__ import annotations

import msgspec

from .logprobs import TokenLogprob
from .result import Result


class Started(msgspec.Struct, frozen=True, tag="started", forbid_unknown_fields=True):
    """A worker began, or resumed, the job. `tokens` were already published by earlier attempts and stay valid."""

    attempt: int
    tokens: int = 0


class Tokens(msgspec.Struct, frozen=True, tag="tokens", forbid_unknown_fields=True, omit_defaults=True):
    """Newly generated ids and the text that they complete; `start` is the position of the first id in the answer."""

    start: int
    token_ids: tuple[int, ...]
    text: str
    # A factory, so that it is always written.
    index: int = msgspec.field(default_factory=int)
    #: One for each of `token_ids`; None, and not written, when `Sampling.logprobs` asked for none.
    logprobs: tuple[TokenLogprob, ...] | None = None


class Finished(msgspec.Struct, frozen=True, tag="finished", forbid_unknown_fields=True):
    """The job's terminal result; the last event."""

    result: Result


Event = Started | Tokens | Finished
