"""Text from token ids that arrive in pieces: what is released is final, and all of it together is the whole decoding.

Two kinds of vocabulary need two ways. In a byte-level one each token is bytes, so text is an incremental UTF-8
decoding. In the others (SentencePiece's "▁", WordPiece) a token's text depends on those before it, so a short window of
tokens is decoded with and without the new ones, and the difference is the new text.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_REPLACEMENT = "\ufffd"


class Detokenizer(Protocol):
    """The text of one sequence, special tokens left out."""

    def push(self, ids: Iterable[int]) -> str:
        """Text that the tokens so far have completed and that was not released yet."""
        ...

    def finish(self) -> str:
        """The rest. A character that never became whole is a replacement character here, and only here."""
        ...


class Vocabulary:
    """What detokenizers ask of a tokenizer; one for all its streams."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._bytes: dict[int, bytes] = {}
        self._alone: dict[int, bytes | None] = {}
        #: Some token that is text.
        self._anchor: list[int] = tokenizer.encode("a", add_special_tokens=False).ids
        state = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder is not None else {}
        kinds = {part["type"] for part in state.get("decoders", [state]) if part}
        #: Every token is bytes.
        self.byte_level = kinds == {"ByteLevel"}
        #: A token may end inside a character, in a way that only the decoded text shows.
        self.splits_characters = "ByteLevel" in kinds
        self._byte_fallback = "ByteFallback" in kinds

    def stream(self) -> Detokenizer:
        return ByteDetokenizer(self) if self.byte_level else WindowDetokenizer(self)

    def decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def token(self, token_id: int) -> str | None:
        """The token's own form; None for one that decoding leaves out: special, or not in the vocabulary."""
        if token_id in self._special:
            return None
        token: str | None = self._tokenizer.id_to_token(token_id)
        return token

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of a token of a byte-level vocabulary; none for one that decoding leaves out."""
        data = self._bytes.get(token_id)
        if data is None:
            token = self.token(token_id) or ""
            try:
                data = bytes(_BYTE_OF[c] for c in token)
            except KeyError:  # an added token is written as it is
                data = token.encode()
            self._bytes[token_id] = data
        return data

    def token_bytes(self, token_id: int) -> bytes | None:
        """The text of one token in UTF-8, also of a special one; None for an id that is no token."""
        if token_id not in self._alone:
            self._alone[token_id] = self._bytes_alone(token_id)
        return self._alone[token_id]

    def _bytes_alone(self, token_id: int) -> bytes | None:
        token: str | None = self._tokenizer.id_to_token(token_id)
        if token is None or token_id in self._special:
            return None if token is None else token.encode()
        if self.splits_characters:
            return self.bytes_of(token_id)
        if self.is_byte(token):
            return bytes((int(token[3:5], 16),))
        # Behind another token: alone, one would lose the space before it, or gain what marks a part of a word.
        before = self.decode(self._anchor)
        text = self.decode([*self._anchor, token_id])
        return text[len(before) :].encode() if text.startswith(before) else self.decode([token_id]).encode()

    def is_byte(self, token: str) -> bool:
        """Whether the token stands for one byte of a character that has no token of its own."""
        return self._byte_fallback and _BYTE_TOKEN.fullmatch(token) is not None


class ByteDetokenizer:
    """Of a byte-level vocabulary."""

    def __init__(self, vocabulary: Vocabulary):
        self._vocabulary = vocabulary
        # Replaces invalid bytes as the tokenizers library does, one character a maximal part, and waits within one.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        return self._decoder.decode(b"".join(map(self._vocabulary.bytes_of, ids)))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """Of any other vocabulary.

    The window starts with the tokens of the last text released (without them, a leading space would be lost), which
    always hold one that decoding keeps.
    """

    def __init__(self, vocabulary: Vocabulary):
        self._vocabulary = vocabulary
        self._window: list[int] = []
        #: How many tokens of the window have been released as text.
        self._read = 0
        #: How many end before the run of byte tokens that the window may end with. A run is text as a whole only: one
        #: byte that fits nowhere turns all of it into replacement characters.
        self._certain = 0

    def push(self, ids: Iterable[int]) -> str:
        for token_id in ids:
            token = self._vocabulary.token(token_id)
            if token is not None:
                self._window.append(token_id)
                if not self._vocabulary.is_byte(token):
                    self._certain = len(self._window)
        return self._release(self._certain)

    def finish(self) -> str:
        return self._release(len(self._window), final=True)

    def _release(self, end: int, *, final: bool = False) -> str:
        if end == self._read:
            return ""
        before = self._vocabulary.decode(self._window[: self._read])
        text = self._vocabulary.decode(self._window[:end])
        unfinished = self._vocabulary.splits_characters and text.endswith(_REPLACEMENT)
        if len(text) <= len(before) or (unfinished and not final):
            return ""
        del self._window[: self._read]
        self._read, self._certain = end - self._read, max(self._certain - self._read, 0)
        return text[len(before) :]


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's map of bytes to printable characters, the other way round: Latin-1's printable ones are themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()
