"""The bytes of `tokens:<id>`: what a running job has generated, in records of one size.

A record is a token's id; where the request asks for log-probabilities, that of the token and pairs of id and
log-probability of as many likeliest tokens follow. All are four bytes, integers or floats, of this machine's order.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence

from millrace_worker.frames import Likely

#: Stands where the model has fewer tokens than were asked for.
_NO_TOKEN = 2**32 - 1


def record_bytes(top: int | None) -> int:
    """`top`: Sampling.logprobs."""
    return 4 if top is None else 8 + 8 * top


def token_bytes(tokens: Sequence[int], logprobs: Sequence[Likely] | None = None, top: int | None = None) -> bytes:
    """The records of tokens, each with its log-probabilities where `top` is a number."""
    if logprobs is None or top is None:
        return array("I", tokens).tobytes()
    record = _record(top)
    parts = []
    for token, likely in zip(tokens, logprobs, strict=True):
        pairs: list[float] = [token, likely.logprob]
        for pair in zip(likely.top_ids, likely.top, strict=True):
            pairs += pair
        pairs += [_NO_TOKEN, 0.0] * (top - len(likely.top))
        parts.append(record.pack(*pairs))
    return b"".join(parts)


def words_from(data: bytes) -> tuple[int, ...]:
    """A checkpoint as numbers of four bytes: ids, where there is nothing else. A torn last one is left out."""
    stored = array("I")
    stored.frombytes(data[: len(data) - len(data) % 4])
    return tuple(stored)


def read_words(words: Sequence[int], top: int | None) -> tuple[list[int], list[Likely]]:
    """Tokens, and their log-probabilities where `top` is a number; a torn last record is left out."""
    if top is None:
        return list(words), []
    data, size = array("I", words).tobytes(), record_bytes(top)
    tokens, logprobs = [], []
    for token, logprob, *pairs in _record(top).iter_unpack(data[: len(data) - len(data) % size]):
        ids = [token_id for token_id in pairs[::2] if token_id != _NO_TOKEN]
        tokens.append(token)
        logprobs.append(Likely(logprob, ids, pairs[1::2][: len(ids)]))
    return tokens, logprobs


def _record(top: int) -> struct.Struct:
    return struct.Struct("=" + "If" * (top + 1))
