"""Engines on a CUDA device in float32, whose answers can be compared with those of a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from millrace_worker.config import EngineConfig
from millrace_worker.engine.engine import Engine
from millrace_worker.frames import AddSequence

NEEDS_CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
EAGER = pytest.mark.parametrize("eager", [pytest.param(True, id="eager"), pytest.param(False, id="graphs")])


def cuda_engine(model: Path | str = "demo", **settings: Any) -> Engine:
    common = {"device": "cuda", "dtype": "float32", "kv_cache_memory_bytes": 64 * 2**20}
    return Engine(EngineConfig(model=str(model), **{**common, **settings}))


def answers_of(engine: Engine, sequences: list[AddSequence]) -> dict[int, list[int]]:
    """By seq_id, with what was generated before."""
    answers: dict[int, list[int]] = {}
    for sequence in sequences:
        engine.add(sequence)
        answers[sequence.seq_id] = list(sequence.generated)
    while engine.has_work:
        for seq_id, tokens in engine.step().tokens:
            answers[seq_id] += tokens
    return answers
