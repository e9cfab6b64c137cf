"""Hugging Face transformers' `generate` on a benchmark's jobs: static batches in the jobs' order.

A static batch runs until its longest answer is done, and what it generates beyond the others' lengths is not counted.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
import transformers

from millrace_bench.peers.protocol import Run, Task, serve
from millrace_bench.workloads import Job

#: Requests of a batch.
BATCH = 32


class TransformersEngine:
    """bfloat16 on a GPU, float32 on a CPU."""

    def __init__(self, task: Task) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        kind = transformers.AutoModelForCausalLM
        with self._device:
            if task.load_format == "dummy":
                config = transformers.AutoConfig.from_pretrained(task.model)
                model = kind.from_config(config, dtype=dtype)
            else:
                model = kind.from_pretrained(task.model, dtype=dtype)
        self._model: Any = model.to(self._device).eval()
        # Its own would fill in what ours leaves out: ids that end an answer, and filters of its distribution.
        self._model.generation_config = transformers.GenerationConfig()
        self._temperature = task.temperature
        self.about = {"transformers": transformers.__version__, "torch": torch.__version__, "batch": str(BATCH)}

    def run(self, jobs: list[Job], limit_s: float | None) -> Run:
        """Batch after batch; past `limit_s` none is begun, and the one that runs ends at its next step."""
        prompts = outputs = steps = 0
        start = time.perf_counter()
        for first in range(0, len(jobs), BATCH):
            left = None if limit_s is None else limit_s - (time.perf_counter() - start)
            if left is not None and left <= 0:
                break
            batch = jobs[first : first + BATCH]
            made = self._generate(batch, left)
            steps += made
            prompts += sum(len(job.prompt) for job in batch)
            outputs += sum(min(job.max_tokens, made) for job in batch)
        return Run(time.perf_counter() - start, prompts, outputs, {"steps": steps})

    @torch.inference_mode()
    def _generate(self, batch: list[Job], limit_s: float | None) -> int:
        """Tokens of each sequence that the batch made."""
        width, longest = max(len(job.prompt) for job in batch), max(job.max_tokens for job in batch)
        # Padded on the left, so that all answers begin in the same column.
        ids = torch.tensor([[0] * (width - len(job.prompt)) + job.prompt for job in batch], device=self._device)
        mask = torch.tensor(
            [[0] * (width - len(job.prompt)) + [1] * len(job.prompt) for job in batch], device=self._device
        )
        sampling = {"do_sample": True, "temperature": self._temperature, "top_k": 0} if self._temperature else {}
        config = transformers.GenerationConfig(
            max_new_tokens=longest, min_new_tokens=longest, pad_token_id=0, max_time=limit_s, **sampling
        )
        answers = self._model.generate(ids, attention_mask=mask, generation_config=config)
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return int(answers.shape[1]) - width


if __name__ == "__main__":
    sys.exit(serve(TransformersEngine))
