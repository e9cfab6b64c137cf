"""A tokenizer without a model: a token is one letter of the alphabet."""

from __future__ import annotations

from collections.abc import Sequence

from millrace_schemas import Message

END = 1023


class LetterTokenizer:
    """Ids become letters by their remainder; text becomes ids by its code points."""

    has_chat_template = True
    eos_token_ids = (END,)

    def encode(self, text: str) -> list[int]:
        if "untokenizable" in text:
            raise RuntimeError("no such text")
        return [ord(c) % 600 for c in text]

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        return self.encode("".join(m.content for m in messages))

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(97 + i % 26) for i in ids)

    def token_bytes(self, token_id: int) -> bytes:
        return self.decode([token_id]).encode()

    def stream(self) -> LetterStream:
        return LetterStream()


class LetterStream:
    """Releases each letter when the next one is known, as a real detokenizer holds back half a character."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, ids: Sequence[int]) -> str:
        text = self._held + "".join(chr(97 + i % 26) for i in ids)
        self._held = text[-1:]
        return text[:-1]

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held
