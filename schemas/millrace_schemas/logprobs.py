"""Log-probabilities of an answer's tokens, as OpenAI reports them, with the tokens' ids."""

from __future__ import annotations

import msgspec

#: Stands for the log-probability of a token that is impossible, and for all that are less likely.
LEAST_LOGPROB = -9999.0


class TopLogprob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One token and its natural log-probability."""

    #: Its text; a character that the token holds a part of is a replacement character here.
    token: str
    token_id: int
    logprob: float
    #: Its text in UTF-8, whole characters or not; None for a token that has none.
    bytes: tuple[int, ...] | None


class TokenLogprob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A generated token, its log-probability, and as many of the likeliest tokens at its place as were asked for.

    They are of the model's own distribution: before penalties, temperature and filters.
    """

    token: str
    token_id: int
    logprob: float
    bytes: tuple[int, ...] | None
    #: The likeliest first. The generated one need not be among them.
    top_logprobs: tuple[TopLogprob, ...] = ()
