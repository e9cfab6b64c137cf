"""How an engine in a process of its own takes its jobs and tells what came of them.

The jobs are a file (JSON, named by the first argument). The answers are lines of JSON on the standard output:
    {"event": "ready", ...}     the model is loaded; versions and the like
    {"event": "run", ...}       a run over one workload, and its figures
    {"event": "end", ...}       no further run over this workload comes
    {"event": "failed", ...}    a workload, or with `workload` null all of them, cannot be run, and why
    {"event": "done"}           nothing more comes
Whatever else the process and its children print goes to the standard error. Standard library alone: the interpreter may
be one in which no package of Millrace's is installed.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from millrace_bench.workloads import Job


@dataclass(frozen=True)
class Task:
    """What is to be run. `settings` are the engine's own; `limit_s` is the most seconds of one workload, None: any."""

    model: str
    load_format: str
    temperature: float
    repeats: int
    settings: dict[str, Any]
    warm_up: list[Job]
    workloads: list[tuple[str, list[Job]]]
    limit_s: float | None = None

    def write(self, path: str) -> None:
        values = {**vars(self), "warm_up": _plain(self.warm_up)}
        values["workloads"] = [(name, _plain(jobs)) for name, jobs in self.workloads]
        with open(path, "w") as file:
            json.dump(values, file, separators=(",", ":"))

    @classmethod
    def read(cls, path: str) -> Task:
        with open(path) as file:
            values = json.load(file)
        values["warm_up"] = _jobs(values["warm_up"])
        values["workloads"] = [(name, _jobs(jobs)) for name, jobs in values["workloads"]]
        return cls(**values)


@dataclass(frozen=True)
class Run:
    """A run over jobs: the tokens of the prompts that were computed, and those of answers that were wanted and came."""

    seconds: float
    prompt_tokens: int
    output_tokens: int
    figures: dict[str, float] = field(default_factory=dict)


class Engine(Protocol):
    """A loaded model. `about` says what it is: versions, and settings that it chose."""

    about: dict[str, str]

    def run(self, jobs: list[Job], limit_s: float | None) -> Run:
        """All jobs at once on an empty prefix cache, as far as `limit_s` lets it."""


def serve(load: Callable[[Task], Engine]) -> int:
    """Runs the task in the file of the first argument; the exit code."""
    channel = _Channel()
    task = Task.read(sys.argv[1])
    try:
        engine = load(task)
        channel.say("ready", about=engine.about)
        engine.run(task.warm_up, None)
    except Exception as e:  # noqa: BLE001 - a foreign engine may fail in any way, and the reason is the answer
        channel.failed(None, e)
        return 1
    for name, jobs in task.workloads:
        try:
            _repeat(engine, task, name, jobs, channel)
            channel.say("end", workload=name)
        except Exception as e:  # noqa: BLE001 - likewise
            channel.failed(name, e)
    channel.say("done")
    return 0


def _repeat(engine: Engine, task: Task, name: str, jobs: list[Job], channel: _Channel) -> None:
    wanted, left = sum(job.max_tokens for job in jobs), task.limit_s
    for _ in range(task.repeats):
        run = engine.run(jobs, left)
        if run.output_tokens > wanted or (left is None and run.output_tokens < wanted):
            raise RuntimeError(f"{run.output_tokens} tokens came back, not {wanted}")
        channel.say("run", workload=name, requests=len(jobs), share=run.output_tokens / wanted, **vars(run))
        if left is None:
            continue
        left -= run.seconds
        # A run that is cut short says no more than the one before it.
        if run.output_tokens < wanted or left < run.seconds:
            return


class _Channel:
    """The standard output of before; what prints there from now on prints to the standard error."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def say(self, event: str, **fields: Any) -> None:
        print(json.dumps({"event": event, **fields}), file=self._file, flush=True)

    def failed(self, workload: str | None, error: Exception) -> None:
        traceback.print_exc()
        words = " ".join(str(error).split()) or "no reason was given"
        self.say("failed", workload=workload, reason=f"{type(error).__name__}: {words}")


def _plain(jobs: list[Job]) -> list[tuple[list[int], int]]:
    return [(job.prompt, job.max_tokens) for job in jobs]


def _jobs(plain: list[tuple[list[int], int]]) -> list[Job]:
    return [Job(prompt, max_tokens) for prompt, max_tokens in plain]
