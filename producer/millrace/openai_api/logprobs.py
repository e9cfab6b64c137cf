"""Log-probabilities in the forms that OpenAI's endpoints have for them."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from millrace_schemas import TokenLogprob, TopLogprob


class TextPlace:
    """How far the text of an answer has come, over all pieces of it."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._characters = 0

    def pass_by(self, token: TokenLogprob) -> int:
        """The characters before the token, which is then passed."""
        before = self._characters
        self._characters += len(self._decoder.decode(bytes(token.bytes or ())))
        return before


def chat_logprobs(tokens: Sequence[TokenLogprob], place: TextPlace) -> dict[str, Any]:
    """`choice.logprobs` of chat completions."""
    content = [{**_one(token), "top_logprobs": [*map(_one, token.top_logprobs)]} for token in tokens]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[TokenLogprob], place: TextPlace) -> dict[str, Any]:
    """`choice.logprobs` of completions: the likeliest tokens by their texts, the chosen one always among them."""
    return {
        "tokens": [*map(_name, tokens)],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            {**{_name(one): one.logprob for one in token.top_logprobs}, _name(token): token.logprob} for token in tokens
        ],
        "text_offset": [*map(place.pass_by, tokens)],
    }


def output_logprobs(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """`logprobs` of a Response's text."""
    return [{**_whole(token), "top_logprobs": [*map(_whole, token.top_logprobs)]} for token in tokens]


def event_logprobs(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """`logprobs` of the events of a Response's text, which have no bytes."""

    def told(token: TokenLogprob | TopLogprob) -> dict[str, Any]:
        return {"token": token.token, "logprob": token.logprob}

    return [{**told(token), "top_logprobs": [*map(told, token.top_logprobs)]} for token in tokens]


def _one(token: TokenLogprob | TopLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": token.bytes}


def _whole(token: TokenLogprob | TopLogprob) -> dict[str, Any]:
    return {"token": token.token, "bytes": token.bytes or (), "logprob": token.logprob}


def _name(token: TokenLogprob | TopLogprob) -> str:
    """The token's text, or its bytes where they are no whole characters: texts of different tokens differ then, too."""
    data = bytes(token.bytes or ())
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
