"""A model for scheduler tests: the next token is a function of the sequence, and every KV read is checked."""

from __future__ import annotations

from millrace_worker.engine.scheduler import Completion, Scheduler
from millrace_worker.engine.sequence import Sequence
from millrace_worker.engine.step import Scheduled, Step
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
        #: What a device knows before the host does: the newest token of each row.
        self.last: dict[int, int] = {}

    def run(self, step: Step) -> list[int]:
        sampled = []
        texts = [self._text(part) for part in step.scheduled]
        for part, text in zip(step.scheduled, texts, strict=True):
            for position in range(part.start, part.start + part.count):
                self.slots[self._slot(part.seq, position)] = tuple(text[: position + 1])
        for part, text in zip(step.scheduled, texts, strict=True):
            for position in range(part.start + part.count):
                assert self.slots[self._slot(part.seq, position)] == tuple(text[: position + 1])
            if part.samples:
                sampled.append(next_token(text))
                self.last[part.seq.row] = sampled[-1]
        return sampled

    def _text(self, part: Scheduled) -> list[int]:
        tokens = part.seq.tokens
        if part.start + part.count <= len(tokens):
            return tokens
        assert part.count == 1, "only the newest token of a decode may be unknown to the host"
        return [*tokens, self.last[part.seq.row]]

    def _slot(self, seq: Sequence, position: int) -> int:
        return seq.block_table[position // self.block_size] * self.block_size + position % self.block_size


def sequence(
    seq_id: int,
    prompt: list[int],
    max_tokens: int = 4,
    *,
    generated: list[int] | None = None,
    priority: int = 0,
    stop: tuple[int, ...] = (),
    salt: str = "",
) -> Sequence:
    params = SequenceParams(max_tokens=max_tokens, stop_token_ids=stop, cache_salt=salt)
    return Sequence(seq_id, prompt, generated or [], params, priority)


def run_step(scheduler: Scheduler, model: FakeModel) -> Completion:
    step = scheduler.schedule()
    assert step is not None
    completion = scheduler.complete(step, model.run(step))
    scheduler.check_integrity()
    return completion


class Pipeline:
    """The engine's loop: with `overlap`, a step is scheduled and run before the one before it is completed."""

    def __init__(self, scheduler: Scheduler, model: FakeModel, *, overlap: bool) -> None:
        self.scheduler = scheduler
        self.model = model
        self.overlap = overlap
        self.launched: tuple[Step, list[int]] | None = None

    @property
    def has_work(self) -> bool:
        return self.launched is not None or self.scheduler.has_work

    def step(self) -> Completion:
        step = self.scheduler.schedule()
        launched = None if step is None else (step, self.model.run(step))
        if self.overlap:
            launched, self.launched = self.launched, launched
        completion = Completion() if launched is None else self.scheduler.complete(*launched)
        self.scheduler.check_integrity()
        return completion


def run_all(scheduler: Scheduler, model: FakeModel, *, overlap: bool = False) -> dict[int, list[int]]:
    """Steps until nothing is left; the tokens of each sequence."""
    answers: dict[int, list[int]] = {}
    pipeline = Pipeline(scheduler, model, overlap=overlap)
    while pipeline.has_work:
        for seq_id, tokens in pipeline.step().tokens:
            answers.setdefault(seq_id, []).extend(tokens)
    return answers
