"""Engines of a tiny model with a disk cache, and prompts that share a beginning of many blocks."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import torch

from greedy import VOCABULARY
from millrace_worker.config import EngineConfig
from millrace_worker.engine.block_copies import BlockCopies
from millrace_worker.engine.engine import Engine
from millrace_worker.engine.kv_cache import block_bytes
from millrace_worker.frames import AddSequence, SequenceParams
from millrace_worker.models.config import load_config

BLOCK = 4
GREEDY = SequenceParams(max_tokens=8, temperature=0.0)


def disk_config(model: Path, directory: Path | None, *, blocks: int = 200, **settings: Any) -> EngineConfig:
    values: dict[str, Any] = {
        "model": str(model),
        "device": "cpu",
        "dtype": "float32",
        "max_num_seqs": 8,
        "max_num_batched_tokens": 256,
        "block_size": BLOCK,
        "max_model_len": 200,
        "kv_cache_memory_bytes": blocks * block_bytes(load_config(model), BLOCK, torch.float32),
        "disk_cache_dir": None if directory is None else str(directory),
        **settings,
    }
    return EngineConfig(**values)


def ids(length: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(4, VOCABULARY) for _ in range(length)]


SYSTEM = ids(40, 1)
#: Behind it.
PROMPTS = [[*SYSTEM, *ids(7 + n, 2 + n)] for n in range(5)]
#: Blocks of SYSTEM, which are all that comes again.
SHARED = len(SYSTEM) // BLOCK


def ask(engine: Engine, prompts: list[list[int]], params: SequenceParams = GREEDY) -> list[list[int]]:
    """Answers of all, computed together."""
    return race(engine, prompts, params)[1]


def race(
    engine: Engine, prompts: list[list[int]], params: SequenceParams = GREEDY
) -> tuple[list[int], list[list[int]]]:
    """Numbers of the prompts in the order in which their answers end, and the answers."""
    answers: list[list[int]] = [[] for _ in prompts]
    ended: list[int] = []
    for number, prompt in enumerate(prompts):
        engine.add(AddSequence(number, prompt, [], params))
    while engine.has_work:
        output = engine.step()
        ended += [number for number, _ in output.finished]
        for number, tokens in output.tokens:
            answers[number] += tokens
        engine.scheduler.check_integrity()
    return ended, answers


def settle(engine: Engine, *, blocks: int, seconds: float = 10.0) -> None:
    """Waits until so many records were written."""
    end = time.monotonic() + seconds
    while engine.cache_stats.written_blocks < blocks:
        assert time.monotonic() < end, engine.cache_stats
        time.sleep(0.01)


def records(directory: Path) -> list[Path]:
    return sorted(directory.glob("*/*/*/*.kv"))


def taken(directory: Path) -> int:
    """Bytes of disk, half-written records included."""
    total = 0
    for folder, _, files in os.walk(directory):
        for name in files:
            if ".kv" in name or ".tmp" in name:
                try:
                    total += os.stat(os.path.join(folder, name)).st_blocks * 512
                except FileNotFoundError:
                    continue
    return total


class LateCopy:
    """Copies at the last moment, when it is asked for the `patience`-th time whether it is done, or waited for."""

    seconds = 0.001

    def __init__(self, blocks: list[int], host: list[torch.Tensor], pairs: list[Any], patience: int) -> None:
        self.blocks, self.host = blocks, host
        self._pairs, self._patience = pairs, patience

    @property
    def is_done(self) -> bool:
        self._patience -= 1
        if self._patience <= 0:
            self.wait()
        return self._patience <= 0

    def wait(self) -> None:
        for target, source in self._pairs:
            target.copy_(source)
        self._pairs, self._patience = [], 0

    def keep_before_steps(self) -> None:
        self.wait()


class LateCopies(BlockCopies):
    """As on a GPU: the data moves while steps run."""

    _draw = random.Random(3)

    def _copy(self, blocks: list[int], host: list[torch.Tensor], pairs: list[Any], stream: Any) -> Any:
        return LateCopy(blocks, host, pairs, self._draw.randrange(1, 6))


def random_prompts(draw: random.Random) -> list[list[int]]:
    """40 prompts behind four beginnings."""
    heads = [ids(draw.randrange(8, 60), 100 + n) for n in range(4)]
    return [[*draw.choice(heads), *ids(draw.randrange(1, 30), 200 + n)] for n in range(40)]


def random_traffic(engine: Engine, prompts: list[list[int]], draw: random.Random) -> list[list[int]]:
    """Answers to prompts of both lanes that come in any order, beside sequences that are given up after a step."""
    answers: dict[int, list[int]] = {}
    todo, doomed_id = list(range(len(prompts))), len(prompts)
    draw.shuffle(todo)
    while todo or engine.has_work:
        for _ in range(min(draw.randrange(4), len(todo))):
            number = todo.pop()
            answers[number] = []
            engine.add(AddSequence(number, prompts[number], [], GREEDY, priority=number % 2))
        doomed = draw.random() < 0.1
        if doomed:
            engine.add(AddSequence(doomed_id, prompts[0], [], GREEDY))
        for number, tokens in engine.step().tokens:
            if number != doomed_id:
                answers[number] += tokens
        if doomed:
            engine.abort(doomed_id)
        engine.scheduler.check_integrity()
    return [answers[number] for number in range(len(prompts))]
