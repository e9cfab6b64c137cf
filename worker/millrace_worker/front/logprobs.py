"""The log-probabilities of one answer, and how they are told: by the text of each token."""

from __future__ import annotations

import asyncio
from functools import lru_cache

from millrace_schemas import TokenLogprob, TopLogprob
from millrace_worker.frames import Likely

from .text import Tokenizer

#: Texts that are told before everything else in the loop has its turn: well below a millisecond.
PIECE = 1000
#: Token ids whose texts are remembered, about 300 bytes each.
_REMEMBERED = 2**16


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
                for token, data in (_text(self._tokenizer, other),)
            )
            token, data = _text(self._tokenizer, token_id)
            found.append(TokenLogprob(token, token_id, likely.logprob, data, top))
        return tuple(found)

    async def all_told(self) -> tuple[TokenLogprob, ...]:
        """As `told` of a whole answer that grows no more, in pieces between which the loop goes on."""
        step = max(1, PIECE // (self.top + 1))
        found: list[TokenLogprob] = []
        for start in range(0, len(self._tokens), step):
            found += self.told(start, start + step)
            await asyncio.sleep(0)
        return tuple(found)


@lru_cache(_REMEMBERED)
def _text(tokenizer: Tokenizer | None, token_id: int) -> tuple[str, tuple[int, ...] | None]:
    data = None if tokenizer is None else tokenizer.token_bytes(token_id)
    return ("", None) if data is None else (data.decode(errors="replace"), tuple(data))
