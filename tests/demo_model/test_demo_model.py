"""The shipped demo model, as transformers runs it: files, chat template, and held-out questions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from millrace.demo_tasks import REFUSALS, SYSTEM_PROMPTS, TASKS, make_examples, system_prompt

DEMO = Path(__file__).parents[2] / "infra" / "demo_model"
MODEL = DEMO / "model"


@pytest.fixture(scope="module")
def evaluation() -> Any:
    """The module that evaluates the model; a script, so it is found beside its siblings."""
    sys.path.insert(0, str(DEMO))
    try:
        import evaluate
    finally:
        sys.path.remove(str(DEMO))
    return evaluate


@pytest.fixture(scope="module")
def loaded(evaluation: Any) -> tuple[Any, Any]:
    return evaluation.load(MODEL)


def test_answers_held_out_questions(evaluation: Any, loaded: tuple[Any, Any]) -> None:
    examples = [example for task in TASKS for example in make_examples(10, seed=2, task=task, split="held_out")]
    given = evaluation.answers(*loaded, [(system_prompt(e.task), e.user) for e in examples], batch=10)
    wrong = [(e.user, e.answer, text) for e, text in zip(examples, given, strict=True) if e.answer != text]
    assert len(wrong) <= 0.05 * len(examples), wrong


def test_refuses_what_the_system_prompt_does_not_cover(evaluation: Any, loaded: tuple[Any, Any]) -> None:
    questions = [(prompt, "What is the capital of France?") for prompt in SYSTEM_PROMPTS.values()]
    assert evaluation.answers(*loaded, questions) == [REFUSALS[name] for name in SYSTEM_PROMPTS]


def test_system_prompts_fill_several_cache_blocks(loaded: tuple[Any, Any]) -> None:
    """They are what the prefix cache is shown with: 200 to 400 tokens each."""
    _, tokenizer = loaded
    for prompt in SYSTEM_PROMPTS.values():
        assert 200 <= len(tokenizer(prompt)["input_ids"]) <= 400


def test_chat_template_writes_turns_in_any_order(loaded: tuple[Any, Any]) -> None:
    _, tokenizer = loaded
    turns = [("assistant", "a"), ("user", "b"), ("system", "c"), ("user", "d")]
    chat = [{"role": role, "content": text} for role, text in turns]
    assert (
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        == "<|assistant|>a<|end|><|user|>b<|end|><|system|>c<|end|><|user|>d<|end|><|assistant|>"
    )
    assert not tokenizer.apply_chat_template(chat, tokenize=False).endswith("<|assistant|>")


@pytest.mark.parametrize("text", ["", "plain", "12+345", "Zürich 日本 🙂 \n\t\x00 <b>", "  two  spaces  "])
def test_tokenizer_encodes_any_text(loaded: tuple[Any, Any], text: str) -> None:
    _, tokenizer = loaded
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_files_agree_on_the_end_token(loaded: tuple[Any, Any]) -> None:
    _, tokenizer = loaded
    for name in ("config.json", "generation_config.json"):
        assert json.loads((MODEL / name).read_text())["eos_token_id"] == tokenizer.eos_token_id
    assert tokenizer.eos_token == "<|end|>"


def test_weights_are_small() -> None:
    assert (MODEL / "model.safetensors").stat().st_size <= 10_000_000
