"""How the next token is chosen, under the names and with the meanings of vLLM's SamplingParams."""

from __future__ import annotations

import msgspec

from .errors import InvalidRequest

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 256
MAX_STOP_TOKEN_IDS = 128
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Sampling of one job. Construction raises InvalidRequest on a value out of range.

    The bias changes the logits first, then the penalties do, the repetition penalty before the other two; then comes
    the temperature. Filters apply to temperature-scaled probabilities in the order top_k, top_p, min_p; the token is
    then drawn with a counter-based generator keyed (seed, position), so a seeded answer does not depend on the batch it
    ran in.
    """

    #: Most tokens to generate; None: as many as the model's context leaves room for.
    max_tokens: int | None = None
    #: No stop applies before this many tokens.
    min_tokens: int = 0
    #: 0 is greedy.
    temperature: float = 1.0
    #: Keep the k most likely tokens; 0 keeps all.
    top_k: int = 0
    #: Keep the smallest set of tokens whose probability reaches this, in (0, 1].
    top_p: float = 1.0
    #: Drop tokens less likely than this fraction of the most likely one, in [0, 1].
    min_p: float = 0.0
    #: Taken off the logit of every token that was generated before, in [-2, 2]; below 0 they become likelier.
    presence_penalty: float = 0.0
    #: The same, times how often the token was generated, in [-2, 2].
    frequency_penalty: float = 0.0
    #: Of a token in the prompt or generated before, a positive logit is divided by this and another multiplied, in
    #: (0, 100].
    repetition_penalty: float = 1.0
    #: Added to the logits of these token ids, in [-100, 100], of at most 1,024 ids: -100 keeps a token out, in effect,
    #: and 100 leaves nothing else.
    logit_bias: dict[int, float] = {}
    #: None: drawn at random when the job is submitted, then fixed for all its attempts.
    seed: int | None = None
    #: Strings that end the answer; they are not part of it.
    stop: tuple[str, ...] = ()
    #: Token ids that end the answer, besides the model's end-of-sequence ids; they are not part of the text.
    stop_token_ids: tuple[int, ...] = ()
    #: Go on past the model's end-of-sequence ids.
    ignore_eos: bool = False
    #: Report the log-probability of each token, before penalties and temperature, and those of so many likeliest ones,
    #: up to 20; None: no log-probabilities.
    logprobs: int | None = None

    def __post_init__(self) -> None:
        # Each job is checked several times on its way, so what is at its default costs a comparison at most.
        if self.max_tokens is not None and self.max_tokens < 1:
            raise _refused("max_tokens", f"must be at least 1, not {self.max_tokens}")
        if self.min_tokens < 0:
            raise _refused("min_tokens", f"must not be negative, not {self.min_tokens}")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _refused("min_tokens", f"is {self.min_tokens}, more than max_tokens = {self.max_tokens}")
        # In this form nan and infinity are refused, too.
        if not 0.0 <= self.temperature <= 100.0:
            raise _refused("temperature", f"must lie in [0, 100], not {self.temperature}")
        if not 0 <= self.top_k < 2**31:
            raise _refused("top_k", f"must be 0 (all tokens) or a positive number, not {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise _refused("top_p", f"must lie in (0, 1], not {self.top_p}")
        if not 0.0 <= self.min_p <= 1.0:
            raise _refused("min_p", f"must lie in [0, 1], not {self.min_p}")
        if not -2.0 <= self.presence_penalty <= 2.0:
            raise _refused("presence_penalty", f"must lie in [-2, 2], not {self.presence_penalty}")
        if not -2.0 <= self.frequency_penalty <= 2.0:
            raise _refused("frequency_penalty", f"must lie in [-2, 2], not {self.frequency_penalty}")
        if not 0.0 < self.repetition_penalty <= 100.0:
            raise _refused("repetition_penalty", f"must lie in (0, 100], not {self.repetition_penalty}")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise _refused("logprobs", f"must lie in [0, {MAX_LOGPROBS}], not {self.logprobs}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise _refused("seed", f"must lie in [0, 2**63), not {self.seed}")
        if self.logit_bias:
            self._check_bias(self.logit_bias)
        if self.stop != ():
            self._check_stops(self.stop)
        if self.stop_token_ids != ():
            self._check_stop_token_ids(self.stop_token_ids)

    def _check_bias(self, bias: dict[int, float]) -> None:
        if len(bias) > MAX_LOGIT_BIAS:
            raise _refused("logit_bias", f"takes at most {MAX_LOGIT_BIAS} ids, not {len(bias)}")
        for token, value in bias.items():
            if not (isinstance(token, int) and 0 <= token < 2**31):
                raise _refused("logit_bias", f"takes token ids in [0, 2**31), not {token!r:.40}")
            if not -100.0 <= value <= 100.0:
                raise _refused("logit_bias", f"must lie in [-100, 100], not {value} as for {token}")

    def _check_stops(self, stops: tuple[str, ...] | str) -> None:
        if isinstance(stops, str):
            raise _refused("stop", "must be a sequence of strings, not one string")
        if len(stops) > MAX_STOP_STRINGS:
            raise _refused("stop", f"takes at most {MAX_STOP_STRINGS} strings, not {len(stops)}")
        for text in stops:
            if not 0 < len(text) <= MAX_STOP_LENGTH:
                raise _refused("stop", f"takes strings of 1 to {MAX_STOP_LENGTH} characters, not of {len(text)}")

    def _check_stop_token_ids(self, ids: tuple[int, ...]) -> None:
        if len(ids) > MAX_STOP_TOKEN_IDS:
            raise _refused("stop_token_ids", f"takes at most {MAX_STOP_TOKEN_IDS} ids, not {len(ids)}")
        if not all(0 <= token < 2**31 for token in ids):
            raise _refused("stop_token_ids", "takes ids in [0, 2**31)")


def _refused(field: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"sampling.{field} {what}", param=f"sampling.{field}")
