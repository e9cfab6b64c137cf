"""The jobs of a workload again, with other token ids: a prefix cache finds nothing there of a pass before."""

from __future__ import annotations

import random

from .workloads import Job

#: Ids at the beginning of a prompt that another pass changes. A block is found by all ids up to its end, so these are
#: enough: two passes would have to draw the same offset for each.
_CHANGED = 16


def again(jobs: list[Job], run: int, number: int, vocab_size: int) -> list[Job]:
    """The jobs of pass `number` of run `run`; those of pass 0 of run 0 are `jobs` themselves.

    What begins alike in one pass begins alike in every other, as each place of a prompt has an offset of its own that
    is the same for all prompts.
    """
    if (run, number) == (0, 0):
        return jobs
    draw = random.Random(f"{run}/{number}")
    offsets = [draw.randrange(vocab_size) for _ in range(_CHANGED)]
    return [Job(_moved(job.prompt, offsets, vocab_size), job.max_tokens) for job in jobs]


def _moved(prompt: list[int], offsets: list[int], vocab_size: int) -> list[int]:
    begin = [(token + offset) % vocab_size for token, offset in zip(prompt, offsets, strict=False)]
    return begin + prompt[len(begin) :]
