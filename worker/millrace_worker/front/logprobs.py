"""The log-probabilities of one answer, and how they are told: by the text of each token."""

from __future__ import annotations

from millrace_schemas import TokenLogprob, TopLogprob
from millrace_worker.frames import Likely

from .text import Tokenizer


class AnswerLogprobs:
    """Of every token of an answer, in their order."""

    def __init__(self, top: int, tokens: list[int], likely: list[Likely], tokenizer: Tokenizer | None):
        """`tokens` is the job's own growing list; `likely` is kept as long as that is."""
        #: How many likeliest tokens stand beside each.
        self.top = top
        self.likely = likely
        self._tokens = tokens
        self._tokenizer = tokenizer

    def told(self, start: int = 0, end: int | None = None) -> tuple[TokenLogprob, ...]:
        """Of the tokens from `start` to `end`, with their texts."""
        found = []
        for token_id, likely in zip(self._tokens[start:end], self.likely[start:end], strict=True):
            top = tuple(
                TopLogprob(token, other, value, data)
                for other, value in zip(likely.top_ids, likely.top, strict=True)
                for token, data in (self._text(other),)
            )
            token, data = self._text(token_id)
            found.append(TokenLogprob(token, token_id, likely.logprob, data, top))
        return tuple(found)

    def _text(self, token_id: int) -> tuple[str, tuple[int, ...] | None]:
        data = None if self._tokenizer is None else self._tokenizer.token_bytes(token_id)
        return ("", None) if data is None else (data.decode(errors="replace"), tuple(data))
