"""A `vllm` of a few lines, for the adapter that runs the real one: written to a directory that goes on Python's path.

It is told by an argument of LLM how to fail: `trouble` is one of start, raise, exit, hang, short. All but `start` come
with a first prompt that begins with TROUBLE. `record` is a file for a JSON line of each thing that it was asked.
"""

from __future__ import annotations

from pathlib import Path

TROUBLE = 77

_SOURCE = f"""
import json, os, subprocess, sys, time

__version__ = "0.0.7"


class SamplingParams:
    def __init__(self, *, temperature, ignore_eos, max_tokens, detokenize):
        self.given = dict(temperature=temperature, ignore_eos=ignore_eos, max_tokens=max_tokens, detokenize=detokenize)
        self.max_tokens = max_tokens


class Completion:
    def __init__(self, count):
        self.token_ids = [0] * count


class RequestOutput:
    def __init__(self, count):
        self.outputs = [Completion(count)]


class LLM:
    def __init__(self, model, *, trouble="", record=None, **settings):
        self.trouble, self.record = trouble, record
        names = ("HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS", "VLLM_LOGGING_LEVEL", "VLLM_USE_FLASHINFER_SAMPLER")
        variables = {{name: os.environ[name] for name in names if name in os.environ}}
        self.note(model=model, settings=settings, variables=variables, path=os.environ["PYTHONPATH"])
        print("INFO 01-01 00:00:00 [core.py:58] vLLM writes its log to the standard output")
        print('{{"event": "done"}}')
        if trouble == "start":
            raise RuntimeError("Engine core initialization failed.\\nSee root cause above.")

    def note(self, **what):
        if self.record:
            with open(self.record, "a") as file:
                file.write(json.dumps(what) + "\\n")

    def reset_prefix_cache(self):
        self.note(reset=True)

    def generate(self, prompts, params, use_tqdm=True):
        prompts = [prompt["prompt_token_ids"] for prompt in prompts]
        self.note(prompts=prompts, params=[one.given for one in params], use_tqdm=use_tqdm)
        counts = [one.max_tokens for one in params]
        if prompts[0][0] == {TROUBLE}:
            if self.trouble == "raise":
                raise ValueError("the prompt is too long")
            if self.trouble == "exit":
                print("CUDA error: an illegal memory access was encountered", file=sys.stderr)
                sys.stderr.flush()
                os._exit(7)
            if self.trouble == "hang":
                child = subprocess.Popen(["sleep", "600"])
                self.note(child=child.pid)
                time.sleep(600)
            if self.trouble == "short":
                counts[-1] -= 1
        return [RequestOutput(count) for count in counts]
"""


def write_vllm(directory: Path) -> Path:
    """The directory, with a package `vllm` in it."""
    package = directory / "vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(_SOURCE)
    return directory
