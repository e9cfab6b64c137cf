"""A model for scheduler tests: the next token is a function of the sequence, and every KV read is checked."""

from __future__ import annotations

from millrace_worker.engine.scheduler import Completion, Scheduler
from millrace_worker.engine.sequence import Sequence
from millrace_worker.engine.step import Step
from millrace_worker.frames import SequenceParams


def next_token(tokens: list[int]) -> int:
    return (sum(tokens[-3:]) * 31 + len(tokens)) % 997


def answer(prompt: list[int], max_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class FakeModel:
    """Keeps what each slot holds (a token and all before it), and refuses to attend to a slot with anything else."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.slots: dict[int, tuple[int, ...]] = {}

    def run(self, step: Step) -> list[int]:
        sampled = []
        for part in step.scheduled:
            seq = part.seq
            for position in range(part.start, part.start + part.count):
                self.slots[self._slot(seq, position)] = tuple(seq.tokens[: position + 1])
        for part in step.scheduled:
            for position in range(part.start + part.count):
                assert self.slots[self._slot(part.seq, position)] == tuple(part.seq.tokens[: position + 1])
            if part.samples:
                sampled.append(next_token(part.seq.tokens))
        return sampled

    def _slot(self, seq: Sequence, position: int) -> int:
        return seq.block_table[position // self.block_size] * self.block_size + position % self.block_size


def sequence(
    seq_id: int, prompt: list[int], max_tokens: int = 4, *, generated: list[int] | None = None, priority: int = 0
) -> Sequence:
    return Sequence(seq_id, prompt, generated or [], SequenceParams(max_tokens=max_tokens), priority)


def run_step(scheduler: Scheduler, model: FakeModel) -> Completion:
    step = scheduler.schedule()
    assert step is not None
    completion = scheduler.complete(step, model.run(step))
    scheduler.check_integrity()
    return completion


def run_all(scheduler: Scheduler, model: FakeModel) -> dict[int, list[int]]:
    """Steps until nothing is left; the tokens of each sequence."""
    answers: dict[int, list[int]] = {}
    while scheduler.has_work:
        for seq_id, tokens in run_step(scheduler, model).tokens:
            answers.setdefault(seq_id, []).extend(tokens)
    return answers
