"""The demo model's own tokenizer: byte-level BPE in which digits and spaces are tokens of their own.

Single digits make sums learnable. A space apart from its word gives a word the same tokens wherever it stands, which
makes copying it (into JSON, say) easy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from millrace.demo_tasks import REFUSALS, SYSTEM_PROMPTS, make_examples

END, SYSTEM, USER, ASSISTANT, PAD = "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|pad|>"
SPECIAL_TOKENS = [PAD, END, SYSTEM, USER, ASSISTANT]

#: Turns in any order, each closed by <|end|>; no token before the first turn.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_PIECES = Regex(r"\p{L}+|\p{N}|\s|[^\s\p{L}\p{N}]+")


def _texts(seed: int, examples: int) -> Iterator[str]:
    """Many short turns, and each system prompt once only, so that it is not merged into a handful of tokens."""
    yield from SYSTEM_PROMPTS.values()
    yield from REFUSALS.values()
    for example in make_examples(examples, seed, split="train"):
        yield example.user
        yield example.answer


def train_tokenizer(vocab_size: int, *, seed: int = 0, examples: int = 40_000) -> Tokenizer:
    """A tokenizer that encodes any text (all 256 bytes are tokens) and adds nothing to it."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_PIECES, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed, examples), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json as transformers reads them."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
