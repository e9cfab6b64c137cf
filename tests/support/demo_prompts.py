"""Prompts of the shipped model, as a worker would give them to its engine."""

from __future__ import annotations

from millrace.demo_tasks import make_examples, system_prompt
from millrace_schemas import Message, Role
from millrace_worker.model_path import resolve_model
from millrace_worker.tokenizer import Tokenizer


def demo_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.load(resolve_model("demo"))
    assert tokenizer is not None
    return tokenizer


def demo_prompts(tokenizer: Tokenizer, count: int = 64) -> list[list[int]]:
    return [
        tokenizer.encode_chat((Message(Role.SYSTEM, system_prompt(example.task)), Message(Role.USER, example.user)))
        for example in make_examples(count, seed=3)
    ]
