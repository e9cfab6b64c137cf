"""The disk cache on a CUDA device: copies beside steps, in both directions, change no answer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from greedy import VOCABULARY, greedy_answers, save
from millrace_worker.config import EngineConfig
from millrace_worker.engine.block_copies import BlockCopies
from millrace_worker.engine.engine import Engine
from millrace_worker.frames import AddSequence, SequenceParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MAX_TOKENS = 12


@pytest.mark.parametrize("eager", [pytest.param(True, id="eager"), pytest.param(False, id="graphs")])
@pytest.mark.parametrize("megabytes", [pytest.param(64, id="roomy"), pytest.param(0.5, id="preempting")])
def test_restarts_change_no_answer(eager: bool, megabytes: float, tmp_path: Path) -> None:
    directory = save("llama3-tied", tmp_path)
    draw = random.Random(1)
    heads = [[draw.randrange(4, VOCABULARY) for _ in range(96)] for _ in range(4)]
    asked = [[*draw.choice(heads), *(draw.randrange(4, VOCABULARY) for _ in range(1 + i % 30))] for i in range(64)]
    wanted = greedy_answers(directory, asked, MAX_TOKENS, eos=None)
    for start in range(3):
        engine = Engine(
            EngineConfig(
                model=str(directory),
                device="cuda",
                dtype="float32",
                max_num_seqs=24,
                max_num_batched_tokens=96,
                max_model_len=200,
                kv_cache_memory_bytes=int(megabytes * 2**20),
                enforce_eager=eager,
                disk_cache_dir=str(tmp_path / "cache"),
            )
        )
        answers: list[list[int]] = [[] for _ in asked]
        for i, prompt in enumerate(asked):
            engine.add(AddSequence(i, prompt, [], SequenceParams(max_tokens=MAX_TOKENS, temperature=0.0)))
        while engine.has_work:
            for seq_id, tokens in engine.step().tokens:
                answers[seq_id] += tokens
            engine.scheduler.check_integrity()
        engine.close()
        assert answers == wanted, f"start {start}"
        assert engine.cache_stats.written_blocks + start > 0
        assert start == 0 or engine.cache_stats.disk_hit_tokens > 0


def test_copies_come_after_the_steps_launched_before_them() -> None:
    """What a long-running kernel writes is what is copied out, and what it reads is not overwritten."""
    cache = torch.zeros((8, 2, 1024, 256), device="cuda")
    copies = BlockCopies(cache)
    for value in range(1, 6):
        torch.cuda._sleep(20_000_000)
        cache[3].fill_(value)
        out = copies.to_host([3], copies.new_buffers(1))
        torch.cuda._sleep(20_000_000)
        seen = cache[3].clone()  # must not see what comes in below
        inward = copies.to_device([3], [torch.full_like(out.host[0], 255).pin_memory()])
        inward.wait()
        inward.keep_before_steps()
        assert out.is_done
        assert out.host[0].view(torch.float32).unique().tolist() == [value]
        assert seen.unique().tolist() == [value]
        assert cache[3].view(torch.uint8).unique().tolist() == [255]
        assert cache[2].unique().tolist() == cache[4].unique().tolist() == [0.0]
