"""The model's tokenizer in the front process, where transformers must not bring torch along."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace_schemas import ErrorCode, InvalidRequest, Message

from .detokenizer import Detokenizer, Vocabulary
from .errors import ModelError
from .fields import Fields, read_json_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

#: Any of these makes a directory one with a tokenizer.
_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


class Tokenizer:
    """Text to token ids and back, as transformers' tokenizer of the model does it.

    Decoding leaves special tokens out and never tidies spaces (transformers does that for no BPE vocabulary either).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, eos_token_ids: tuple[int, ...]):
        self._tokenizer: Any = tokenizer
        self._vocabulary = Vocabulary(tokenizer.backend_tokenizer)
        #: Ids that end an answer: generation_config.json's, else config.json's, else the tokenizer's own.
        self.eos_token_ids = eos_token_ids
        self.has_chat_template = _has_chat_template(tokenizer)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer | None:
        """The tokenizer in the directory `path`; None when it has no tokenizer files.

        Raises ModelError when there are some and they make no tokenizer.
        """
        path = Path(path)
        if not any((path / name).exists() for name in _FILES):
            return None
        tokenizer = _load(path)
        return cls(tokenizer, _eos_token_ids(path, tokenizer.eos_token_id))

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt, with the special tokens that the tokenizer adds to one.

        Raises InvalidRequest when the text cannot be tokenized.
        """
        try:
            ids: list[int] = self._tokenizer(text, verbose=False)["input_ids"]
        except (TypeError, ValueError) as e:  # text that is not Unicode
            raise _failed("prompt", e) from e
        return ids

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to where the assistant's answer begins, by the model's chat template.

        Raises InvalidRequest when there is no template, or when it refuses the messages.
        """
        from jinja2 import TemplateError

        if not self.has_chat_template:
            raise InvalidRequest(
                "this model has no chat template; send a prompt instead of messages",
                param="messages",
                code=ErrorCode.NO_CHAT_TEMPLATE,
            )
        turns = [{"role": str(m.role), "content": m.content} for m in messages]
        try:
            ids: list[int] = self._tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=False, tokenizer_kwargs={"verbose": False}
            )
        except TemplateError as e:
            raise InvalidRequest(f"the model's chat template refuses these messages: {e}", param="messages") from e
        except (TypeError, ValueError) as e:
            raise _failed("messages", e) from e
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._vocabulary.decode(list(ids))

    def token_bytes(self, token_id: int) -> bytes | None:
        """The text of one token in UTF-8, which may be a part of a character; None for an id that is no token.

        A leading space that the vocabulary writes into the token is there, and a special token's own form.
        """
        return self._vocabulary.token_bytes(token_id)

    def stream(self) -> Detokenizer:
        """A detokenizer for one sequence, whose pieces together are what `decode` gives for all its ids."""
        return self._vocabulary.stream()


def _load(path: Path) -> Any:
    tokenizer_class = _auto_tokenizer()
    try:
        tokenizer = tokenizer_class.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as e:  # any library below may fail in its own way on a broken file
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise ModelError(f"{path}: the tokenizer cannot be loaded: {reason}") from e
    if not hasattr(tokenizer, "backend_tokenizer"):
        kind = type(tokenizer).__name__
        raise ModelError(f"{path}: {kind} has no fast form; a tokenizer.json is needed")
    return tokenizer


def _auto_tokenizer() -> Any:
    """AutoTokenizer of transformers, imported without torch unless either is there already."""
    if "torch" not in sys.modules and "transformers" not in sys.modules:
        # transformers takes this for "not installed"; so does anything else in this process that asks for torch.
        sys.modules["torch"] = None  # type: ignore[assignment]
        logging.getLogger("transformers").addFilter(lambda record: "PyTorch was not found" not in record.getMessage())
    from transformers import AutoTokenizer

    return AutoTokenizer


def _eos_token_ids(path: Path, own: int | None) -> tuple[int, ...]:
    for name in ("generation_config.json", "config.json"):
        if (path / name).exists():
            fields = Fields(read_json_object(path / name), str(path / name))
            if ids := fields.token_ids("eos_token_id"):
                return ids
    return () if own is None else (own,)


def _has_chat_template(tokenizer: PreTrainedTokenizerFast) -> bool:
    try:
        return bool(tokenizer.get_chat_template())
    except ValueError:  # none, or several and no default
        return False


def _failed(param: str, error: Exception) -> InvalidRequest:
    return InvalidRequest(f"{param} cannot be tokenized: {error}", param=param, code=ErrorCode.TOKENIZATION_FAILED)
