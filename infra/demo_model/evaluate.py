"""Exact-match accuracy of a demo model on held-out questions, greedily, with the stored weights in float32.

Run from the repository root, with millrace[worker] installed:
python infra/demo_model/evaluate.py infra/demo_model/model
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from millrace.demo_tasks import TASKS, Example, make_examples, system_prompt

#: Longer than any right answer.
MAX_ANSWER_TOKENS = 112


def load(directory: Path, device: str = "cpu") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model in float32 and tokenizer. Raises ValueError when the stored weights do not fit the architecture."""
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    model, info = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    wrong = {kind: keys for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if (keys := info[kind])}
    if wrong:
        raise ValueError(f"the weights in {directory} do not fit its config.json: {wrong}")
    return model.to(device).eval(), tokenizer


@torch.inference_mode()
def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[tuple[str, str]], batch: int = 128
) -> list[str]:
    """The model's greedy answers to (system prompt, user text) questions."""
    texts: list[str] = []
    for start in range(0, len(questions), batch):
        chats = [
            [{"role": "system", "content": system}, {"role": "user", "content": user}]
            for system, user in questions[start : start + batch]
        ]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        ).to(model.device)
        outputs = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=MAX_ANSWER_TOKENS,
            do_sample=False,
        )
        new_tokens = outputs[:, inputs["input_ids"].shape[1] :]
        texts += tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
    return texts


def evaluate(directory: Path, *, count: int, device: str, seed: int = 1) -> dict[str, object]:
    """Accuracy in percent over `count` held-out questions of each task, with a few wrong answers of each."""
    model, tokenizer = load(directory, device)
    started = time.perf_counter()
    accuracy: dict[str, float] = {}
    wrong: dict[str, list[list[str]]] = {}
    for task in TASKS:
        examples: list[Example] = make_examples(count, seed, task, split="held_out")
        given = answers(model, tokenizer, [(system_prompt(task), example.user) for example in examples])
        misses = [
            [example.user, example.answer, text]
            for example, text in zip(examples, given, strict=True)
            if text != example.answer
        ]
        accuracy[task] = round(100 * (1 - len(misses) / count), 2)
        wrong[task] = misses[:10]
    return {
        "exact_percent": accuracy,
        "overall_percent": round(sum(accuracy.values()) / len(accuracy), 2),
        "questions_per_task": count,
        "system_prompt_tokens": {
            task: len(tokenizer(system_prompt(task), add_special_tokens=False)["input_ids"]) for task in TASKS
        },
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(time.perf_counter() - started, 1),
        "wrong": wrong,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="directory of the model")
    parser.add_argument("--count", type=int, default=300, help="held-out questions of each task")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="also write the report to this file")
    arguments = parser.parse_args()
    report = json.dumps(evaluate(arguments.model, count=arguments.count, device=arguments.device), indent=2)
    print(report)
    if arguments.out:
        arguments.out.write_text(report + "\n")


if __name__ == "__main__":
    main()
