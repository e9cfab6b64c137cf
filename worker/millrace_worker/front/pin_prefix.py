"""How much of a rendered prompt its system messages make."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Sequence

from millrace_schemas import InvalidRequest, Message, Request, Role

from .text import TextTools, Tokenizer

#: User messages that begin with different characters, so that what they have in common is no part of either.
_PROBES = ("a", "0")
#: Beginnings that are remembered, by their system messages.
_REMEMBERED = 256
#: Longer system messages, in characters, are rendered in a thread; shorter ones cost less than the thread.
_LONG_TEXT = 4096


class PinPrefixes:
    """The beginnings of prompts that are to be pinned."""

    def __init__(self, tools: TextTools):
        self._tokenizer = tools.tokenizer
        self._made: dict[bytes, list[int]] = {}

    async def of(self, request: Request, prompt: list[int]) -> list[int]:
        """The part of `prompt` that any prompt with the same leading system messages begins with; without any, all.

        Raises InvalidRequest when the chat template refuses these messages with another user's.
        """
        system = tuple(itertools.takewhile(lambda m: m.role is Role.SYSTEM, request.messages or ()))
        if not system or self._tokenizer is None:
            return prompt
        key = _key(system)
        begin = self._made.get(key)
        if begin is None or (common(begin, prompt) < len(begin)):
            # Also when a remembered one does not fit: a template may write the date.
            begin = await self._render(system, self._tokenizer)
            self._remember(key, begin)
        return prompt[: common(begin, prompt)]

    async def _render(self, system: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        def render() -> list[int]:
            one, other = (tokenizer.encode_chat([*system, Message(Role.USER, probe)]) for probe in _PROBES)
            return one[: common(one, other)]

        long = sum(len(m.content) for m in system) > _LONG_TEXT
        try:
            return await asyncio.to_thread(render) if long else render()
        except InvalidRequest:
            raise
        except Exception as e:
            # A chat template is a program that came with the model: it may raise anything.
            raise InvalidRequest(f"the chat template fails on the system messages alone: {e}", param="messages") from e

    def _remember(self, key: bytes, begin: list[int]) -> None:
        if len(self._made) >= _REMEMBERED:
            del self._made[next(iter(self._made))]
        self._made[key] = begin


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(i for i in range(length) if one[i] != other[i])


def _key(system: Sequence[Message]) -> bytes:
    digest = hashlib.sha256()
    for message in system:
        text = message.content.encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.digest()
