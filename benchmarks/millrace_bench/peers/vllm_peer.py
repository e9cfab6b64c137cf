"""vLLM's offline engine on a benchmark's jobs. Runs in vLLM's environment: the standard library and vllm alone."""

from __future__ import annotations

import importlib.util
import sys
import time
from importlib.metadata import PackageNotFoundError, version

# Not config.py: that reads Millrace's settings, and this is vLLM's process, whose settings are its environment.
from os import environ  # noqa: TID251

from millrace_bench.peers.protocol import Run, Task, serve
from millrace_bench.workloads import Job


class VllmEngine:
    """`task.settings` are arguments of vllm.LLM; what they leave out is at vLLM's default."""

    def __init__(self, task: Task) -> None:
        for name, value in _environ().items():
            environ.setdefault(name, value)
        from vllm import LLM, SamplingParams

        self._params, self._temperature = SamplingParams, task.temperature
        self._llm = LLM(task.model, load_format=task.load_format, **task.settings)
        self.about = {name: found for name in ("vllm", "torch") if (found := _version(name))}

    def run(self, jobs: list[Job], limit_s: float | None) -> Run:
        """Every answer to its length; `limit_s` is not kept."""
        self._llm.reset_prefix_cache()
        prompts = [{"prompt_token_ids": job.prompt} for job in jobs]
        params = [
            self._params(temperature=self._temperature, ignore_eos=True, max_tokens=job.max_tokens, detokenize=False)
            for job in jobs
        ]
        start = time.perf_counter()
        answers = self._llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        outputs = sum(len(answer.outputs[0].token_ids) for answer in answers)
        return Run(seconds, sum(len(job.prompt) for job in jobs), outputs)


def _environ() -> dict[str, str]:
    found = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if importlib.util.find_spec("flashinfer") is None:
        # vLLM's own sampler; else it asks for a package that is not there.
        found["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return str(getattr(sys.modules.get(package), "__version__", ""))


if __name__ == "__main__":
    sys.exit(serve(VllmEngine))
