"""Engines over tiny models on the CPU, and how their answers are collected."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from millrace_worker.config import EngineConfig
from millrace_worker.engine.engine import Engine
from millrace_worker.engine.kv_cache import block_bytes
from millrace_worker.frames import AddSequence, SequenceParams
from millrace_worker.models.config import load_config


def make_engine(
    directory: Path, seqs: int, budget: int, block_size: int, blocks: int, caching: bool, *, overlap: bool = False
) -> Engine:
    engine_config = EngineConfig(
        model=str(directory),
        device="cpu",
        dtype="float32",
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        block_size=block_size,
        enable_prefix_caching=caching,
        max_model_len=200,
        kv_cache_memory_bytes=blocks * block_bytes(load_config(directory), block_size, torch.float32),
    )
    return Engine(engine_config, overlap=overlap)


def answer_all(
    engine: Engine, asked: list[list[int]], params: list[SequenceParams], a_step: int = 0
) -> dict[int, list[int]]:
    order = list(range(len(asked)))
    random.Random(5).shuffle(order)
    answers: dict[int, list[int]] = {i: [] for i in order}
    while order or engine.has_work:
        for _ in range(a_step or len(order)):
            if order:
                i = order.pop()
                engine.add(AddSequence(i, asked[i], [], params[i]))
        output = engine.step()
        assert not output.refused
        for seq_id, tokens in output.tokens:
            answers[seq_id].extend(tokens)
        engine.scheduler.check_integrity()
    return answers
