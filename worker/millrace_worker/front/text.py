"""Text of an answer while it grows: incremental decoding and stop strings, for the jobs that need either."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from millrace_schemas import Message


class Detokenizer(Protocol):
    def push(self, ids: Sequence[int]) -> str: ...

    def finish(self) -> str: ...


class Tokenizer(Protocol):
    """What the front asks of millrace_worker.tokenizer.Tokenizer."""

    @property
    def has_chat_template(self) -> bool: ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_chat(self, messages: Sequence[Message]) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def stream(self) -> Detokenizer: ...

    def token_bytes(self, token_id: int) -> bytes | None: ...

    def __hash__(self) -> int: ...


class StopChecker(Protocol):
    """What the front asks of millrace_worker.stop.StopChecker.

    It searches stop strings in pushed text; text that may be the start of one is held back.
    """

    @property
    def matched(self) -> str | None: ...

    def push(self, text: str) -> str: ...

    def finish(self) -> str: ...


@dataclass(frozen=True, slots=True)
class TextTools:
    """Everything about text that a front has. Without a tokenizer only prompt_token_ids can be run."""

    tokenizer: Tokenizer | None
    stop_checker: Callable[[Sequence[str]], StopChecker]


class GrowingText:
    """The text of one answer, as far as it is certain. `stopped` is set once a stop string was found."""

    def __init__(self, tools: TextTools, tokenizer: Tokenizer, stop: Sequence[str], min_tokens: int):
        self._detokenizer = tokenizer.stream()
        self._checker = tools.stop_checker(stop) if stop else None
        self._min_tokens = min_tokens
        self._pushed = 0
        self._parts: list[str] = []
        self.stopped = False

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def push(self, ids: Sequence[int]) -> tuple[str, int]:
        """The text that `ids` complete, and how many of them belong to the answer: fewer when a stop string ends it."""
        if self._checker is None:
            self._pushed += len(ids)
            return self._keep(self._detokenizer.push(ids)), len(ids)
        new = ""
        # One at a time: the token that completes a stop string is the answer's last.
        for used, token in enumerate(ids, start=1):
            self._pushed += 1
            new += self._checked(self._detokenizer.push((token,)))
            if self.stopped:
                return self._keep(new), used
        return self._keep(new), len(ids)

    def finish(self) -> str:
        """The text that was held back, at the end of an answer that no stop string ended."""
        if self.stopped:
            return ""
        rest = self._checked(self._detokenizer.finish())
        if self._checker is not None and not self.stopped:
            rest += self._checker.finish()
        return self._keep(rest)

    def _checked(self, text: str) -> str:
        if self._checker is None or not text or self._pushed < self._min_tokens:
            return text
        text = self._checker.push(text)
        self.stopped = self._checker.matched is not None
        return text

    def _keep(self, text: str) -> str:
        if text:
            self._parts.append(text)
        return text
