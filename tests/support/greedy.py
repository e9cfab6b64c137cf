"""Transformers' own greedy answers, the measure of ours."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tiny_models import SHAPE, make_model

VOCABULARY: int = SHAPE["vocab_size"]


def save(name: str, directory: Path) -> Path:
    """The tiny model called `name` as a Hugging Face directory."""
    make_model(name).save_pretrained(directory / name)
    return directory / name


def prompts(count: int, *, seed: int = 0, longest: int = 70) -> list[list[int]]:
    """Random prompts, a third of them behind one of two common heads."""
    draw = random.Random(seed)

    def ids(length: int) -> list[int]:
        return [draw.randrange(4, VOCABULARY) for _ in range(length)]

    heads = [ids(48), ids(37)]
    return [(draw.choice(heads) if i % 3 == 0 else []) + ids(draw.randint(1, longest)) for i in range(count)]


@torch.inference_mode()
def greedy_answers(
    directory: Path, prompts: list[list[int]], max_tokens: int, eos: int | list[int] | None
) -> list[list[int]]:
    """What generate() answers in float32, one prompt at a time."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    if eos is None:
        model.generation_config.eos_token_id = None
    answers = []
    for prompt in prompts:
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=0,
        )
        answers.append(out[0, len(prompt) :].tolist())
    return answers
