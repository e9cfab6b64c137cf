"""What `events()` yields while a job runs: one tagged union, in the order that things happened."""

from __future__ import annotations

import msgspec

from .result import Result


class Started(msgspec.Struct, frozen=True, tag="started", forbid_unknown_fields=True):
    """A worker began, or resumed, the job. `tokens` were already published by earlier attempts and stay valid."""

    attempt: int
    tokens: int = 0


class Tokens(msgspec.Struct, frozen=True, tag="tokens", forbid_unknown_fields=True):
    """Newly generated ids and the text that they complete; `start` is the position of the first id in the answer."""

    start: int
    token_ids: tuple[int, ...]
    text: str
    index: int = 0


class Finished(msgspec.Struct, frozen=True, tag="finished", forbid_unknown_fields=True):
    """The job's terminal result; the last event."""

    result: Result


Event = Started | Tokens | Finished
