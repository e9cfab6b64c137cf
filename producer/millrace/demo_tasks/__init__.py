"""What the demo model can do: four small tasks under three system prompts, with answers that anyone can check by eye.

`millrace demo`, the tests and the training of the demo model (infra/demo_model) all draw their questions here.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from random import Random
from typing import Literal

from millrace.demo_tasks.example import Example
from millrace.demo_tasks.numbers import make_number, number_words
from millrace.demo_tasks.orders import make_order
from millrace.demo_tasks.prompts import REFUSALS, SYSTEM_PROMPTS
from millrace.demo_tasks.rewording import make_rewording
from millrace.demo_tasks.sums import make_sum

__all__ = [
    "PROMPT_OF_TASK",
    "REFUSALS",
    "SYSTEM_PROMPTS",
    "TASKS",
    "Example",
    "Split",
    "is_held_out",
    "make_example",
    "make_examples",
    "number_words",
    "system_prompt",
]

Split = Literal["train", "held_out"]

#: Makers of examples by task.
TASKS: dict[str, Callable[[Random], Example]] = {
    "orders": make_order,
    "numbers": make_number,
    "sums": make_sum,
    "rewording": make_rewording,
}

#: The name of the system prompt that each task belongs to; numbers and sums share one.
PROMPT_OF_TASK: dict[str, str] = {
    "orders": "orders",
    "numbers": "numbers",
    "sums": "numbers",
    "rewording": "rewording",
}

_HELD_OUT_ONE_IN = 20


def system_prompt(task: str) -> str:
    """The system prompt under which the model does this task. Raises ValueError for an unknown task."""
    if task not in PROMPT_OF_TASK:
        raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
    return SYSTEM_PROMPTS[PROMPT_OF_TASK[task]]


def is_held_out(example: Example) -> bool:
    """Whether the model was never trained on what this example is about: one in 20, by a hash of its key."""
    digest = blake2b(f"{example.task}\n{example.key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % _HELD_OUT_ONE_IN == 0


def make_example(rng: Random, task: str | None = None, *, split: Split | None = None) -> Example:
    """A random example of a task (of any task without one), from one side of the split when it is given.

    Raises ValueError for an unknown task.
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
    make = TASKS[task or rng.choice(tuple(TASKS))]
    example = make(rng)
    while split is not None and is_held_out(example) != (split == "held_out"):
        example = make(rng)
    return example


def make_examples(count: int, seed: int, task: str | None = None, *, split: Split | None = None) -> list[Example]:
    """`count` examples; the same seed gives the same examples on every machine."""
    rng = Random(seed)
    return [make_example(rng, task, split=split) for _ in range(count)]
