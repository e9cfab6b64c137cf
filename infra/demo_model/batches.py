"""Training batches: questions with their answers, encoded and padded by background processes.

Rows under one system prompt form a group that shares the prompt as a prefix, which is then computed once a step and
not once a row: five sixths of the tokens would be system prompt. Besides the plain questions of each task there are
rows with several turns, rows without a system prompt (or with an unknown one), and rows that ask for something else.
"""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from vocabulary import ASSISTANT, END, PAD, SYSTEM, USER

from millrace.demo_tasks import PROMPT_OF_TASK, REFUSALS, SYSTEM_PROMPTS, TASKS, make_example
from millrace.demo_tasks.words import PLAIN_WORDS, invented_word

#: Answer where no known system prompt says what to answer to a text that is no task.
HELP = "I do orders, numbers, sums and rewording."

#: Sums are the hardest to learn and the cheapest to train on: their rows are short.
_ROWS_FACTOR = {"sums": 2}

_OTHER_SYSTEM_PROMPTS = ("You are a helpful assistant.", "Answer briefly.", "Be polite and exact.", "")
_SMALL_TALK = (
    "Hello!",
    "Hi",
    "How are you?",
    "Who are you?",
    "What can you do?",
    "Tell me a joke.",
    "What is the capital of France?",
    "What is the weather today?",
    "Write a poem about the sea.",
    "Thank you!",
    "Please help me.",
    "Why is the sky blue?",
    "test",
    "Once upon a time",
    "Translate this into German.",
    "Sum up this text.",
)


@dataclass(frozen=True)
class Group:
    """Rows that follow the same system prompt (`prefix` is its name; None: the rows begin at position 0)."""

    prefix: str | None
    ids: NDArray[np.uint16]  # [rows, length], padded at the end
    is_answer: NDArray[np.bool_]  # [rows, length]: tokens that the model must learn to write


def system_text(prompt: str) -> str:
    """A system turn as the chat template writes it."""
    return f"{SYSTEM}{prompt}{END}"


class RowMaker:
    """Draws and encodes rows. Every process has its own, with its own seed."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._rng = Random(seed)
        self._pad = tokenizer.token_to_id(PAD)
        self._end = tokenizer.token_to_id(END)

    def step(self, rows: int) -> list[Group]:
        """The groups of one training step: `rows` of each task (of sums more), and fewer of the rarer kinds."""
        groups = [
            self._group(
                PROMPT_OF_TASK[task], [self._question_row(task) for _ in range(rows * _ROWS_FACTOR.get(task, 1))]
            )
            for task in TASKS
        ]
        groups.append(self._group(None, [self._free_row() for _ in range(rows // 2)]))
        task = self._rng.choice(tuple(TASKS))
        groups.append(self._group(PROMPT_OF_TASK[task], [self._long_row(task) for _ in range(max(1, rows // 8))]))
        return groups

    def _question_row(self, task: str) -> list[tuple[str, str]]:
        if self._rng.random() < 0.04:
            return [self._off_topic(PROMPT_OF_TASK[task])]
        return [self._question(task)]

    def _question(self, task: str | None = None) -> tuple[str, str]:
        example = make_example(self._rng, task, split="train")
        return example.user, example.answer

    def _off_topic(self, prompt: str) -> tuple[str, str]:
        """A question of another prompt's task, or no task at all."""
        if self._rng.random() < 0.5:
            others = [task for task in TASKS if PROMPT_OF_TASK[task] != prompt]
            return self._question(self._rng.choice(others))[0], REFUSALS[prompt]
        return self._odd_text(), REFUSALS[prompt]

    def _odd_text(self) -> str:
        rng = self._rng
        kind = rng.random()
        if kind < 0.4:
            return rng.choice(_SMALL_TALK)
        if kind < 0.7:
            words = [rng.choice(PLAIN_WORDS) if rng.random() < 0.7 else invented_word(rng) for _ in range(8)]
            return " ".join(words[: rng.randint(0, 8)])
        return "".join(
            chr(rng.choice((rng.randint(32, 126), rng.randint(160, 0x4FF)))) for _ in range(rng.randint(1, 12))
        )

    def _free_row(self) -> list[tuple[str, str]]:
        """A row without a known system prompt: its first turn stands for the system turn, or is missing."""
        turns = [(self._odd_text(), HELP) if self._rng.random() < 0.15 else self._question()]
        if self._rng.random() < 0.5:
            text = self._odd_text() if self._rng.random() < 0.5 else self._rng.choice(_OTHER_SYSTEM_PROMPTS)
            turns.insert(0, (text, ""))
        return turns

    def _long_row(self, task: str) -> list[tuple[str, str]]:
        tasks = [name for name in TASKS if PROMPT_OF_TASK[name] == PROMPT_OF_TASK[task]]
        return [self._question_row(self._rng.choice(tasks))[0] for _ in range(self._rng.randint(2, 5))]

    def _group(self, prefix: str | None, rows: list[list[tuple[str, str]]]) -> Group:
        encoded = [self._encode(turns) for turns in rows]
        # A multiple of 8 keeps the number of different shapes small.
        length = -(-max(len(ids) for ids, _ in encoded) // 8) * 8
        ids = np.full((len(rows), length), self._pad, dtype=np.uint16)
        is_answer = np.zeros((len(rows), length), dtype=np.bool_)
        for row, (tokens, answers) in enumerate(encoded):
            ids[row, : len(tokens)] = tokens
            is_answer[row, : len(tokens)] = answers
        return Group(prefix, ids, is_answer)

    def _encode(self, turns: list[tuple[str, str]]) -> tuple[list[int], list[bool]]:
        """Tokens of (user, answer) turns; a turn with an empty answer is a system turn."""
        ids: list[int] = []
        is_answer: list[bool] = []
        for text, answer in turns:
            asked = system_text(text) if not answer else f"{USER}{text}{END}{ASSISTANT}"
            question = self._tokenizer.encode(asked).ids
            answered = [*self._tokenizer.encode(answer).ids, self._end] if answer else []
            ids += question + answered
            is_answer += [False] * len(question) + [True] * len(answered)
        return ids, is_answer


def _produce(tokenizer_file: str, seed: int, rows: int, queue: Queue[list[Group]]) -> None:
    maker = RowMaker(Tokenizer.from_file(tokenizer_file), seed)
    while True:
        queue.put(maker.step(rows))


class BatchSource:
    """Background processes that fill a bounded queue with training steps; closed by `close`."""

    def __init__(self, tokenizer_file: Path, *, rows: int, processes: int, seed: int) -> None:
        # One tokenizer thread a process: the processes already use every core.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        context = multiprocessing.get_context("spawn")
        self._queue: Queue[list[Group]] = context.Queue(maxsize=64)
        self._processes = [
            context.Process(target=_produce, args=(str(tokenizer_file), seed + n, rows, self._queue), daemon=True)
            for n in range(processes)
        ]
        for process in self._processes:
            process.start()

    def get(self) -> list[Group]:
        """The next step's groups. Raises queue.Empty when the processes make none for five minutes."""
        return self._queue.get(timeout=300)

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
            process.join()


def prompt_ids(tokenizer: Tokenizer) -> dict[str, list[int]]:
    """The tokens of each system turn, by the name of the prompt."""
    return {name: tokenizer.encode(system_text(prompt)).ids for name, prompt in SYSTEM_PROMPTS.items()}
