"""How the next token is chosen, under the names and with the meanings of vLLM's SamplingParams."""

from __future__ import annotations

import math

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
        if self.max_tokens is not None:
            _require(self.max_tokens >= 1, "max_tokens", "must be at least 1, not {}", self.max_tokens)
        _require(self.min_tokens >= 0, "min_tokens", "must not be negative, not {}", self.min_tokens)
        if self.max_tokens is not None:
            _require(
                self.min_tokens <= self.max_tokens,
                "min_tokens",
                "is {}, more than max_tokens = {}",
                self.min_tokens,
                self.max_tokens,
            )
        _require(
            math.isfinite(self.temperature) and 0.0 <= self.temperature <= 100.0,
            "temperature",
            "must lie in [0, 100], not {}",
            self.temperature,
        )
        _require(0 <= self.top_k < 2**31, "top_k", "must be 0 (all tokens) or a positive number, not {}", self.top_k)
        _require(0.0 < self.top_p <= 1.0, "top_p", "must lie in (0, 1], not {}", self.top_p)
        _require(0.0 <= self.min_p <= 1.0, "min_p", "must lie in [0, 1], not {}", self.min_p)
        self._check_penalties()
        self._check_bias()
        if self.logprobs is not None:
            _require(
                0 <= self.logprobs <= MAX_LOGPROBS,
                "logprobs",
                f"must lie in [0, {MAX_LOGPROBS}], not {{}}",
                self.logprobs,
            )
        if self.seed is not None:
            _require(0 <= self.seed < 2**63, "seed", "must lie in [0, 2**63), not {}", self.seed)
        self._check_stops()

    def _check_penalties(self) -> None:
        for name in ("presence_penalty", "frequency_penalty"):
            value: float = getattr(self, name)
            _require(-2.0 <= value <= 2.0, name, "must lie in [-2, 2], not {}", value)
        _require(
            0.0 < self.repetition_penalty <= 100.0,
            "repetition_penalty",
            "must lie in (0, 100], not {}",
            self.repetition_penalty,
        )

    def _check_bias(self) -> None:
        bias = self.logit_bias
        _require(len(bias) <= MAX_LOGIT_BIAS, "logit_bias", f"takes at most {MAX_LOGIT_BIAS} ids, not {{}}", len(bias))
        for token, value in bias.items():
            ok = isinstance(token, int) and 0 <= token < 2**31
            _require(ok, "logit_bias", "takes token ids in [0, 2**31), not {!r:.40}", token)
            _require(-100.0 <= value <= 100.0, "logit_bias", "must lie in [-100, 100], not {} as for {}", value, token)

    def _check_stops(self) -> None:
        if isinstance(self.stop, str):
            raise InvalidRequest("sampling.stop must be a sequence of strings, not one string", param="sampling.stop")
        _require(
            len(self.stop) <= MAX_STOP_STRINGS,
            "stop",
            f"takes at most {MAX_STOP_STRINGS} strings, not {{}}",
            len(self.stop),
        )
        for text in self.stop:
            _require(
                0 < len(text) <= MAX_STOP_LENGTH,
                "stop",
                f"takes strings of 1 to {MAX_STOP_LENGTH} characters, not of {{}}",
                len(text),
            )
        _require(
            len(self.stop_token_ids) <= MAX_STOP_TOKEN_IDS,
            "stop_token_ids",
            f"takes at most {MAX_STOP_TOKEN_IDS} ids, not {{}}",
            len(self.stop_token_ids),
        )
        _require(all(0 <= t < 2**31 for t in self.stop_token_ids), "stop_token_ids", "takes ids in [0, 2**31)")


def _require(ok: bool, field: str, what: str, *values: object) -> None:
    """Raises InvalidRequest with `what`, in which the values are put only then: each job is checked several times."""
    if not ok:
        raise InvalidRequest(f"sampling.{field} {what.format(*values)}", param=f"sampling.{field}")
