"""The same jobs through several engines, each in a process of its own, one after the other."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from millrace_worker.config import engine_environ

from .config import peer_environ
from .peer_process import PeerFailed, events, last_line, log_file, scratch
from .peers.protocol import Task
from .results import ENGINE, Row, best
from .workloads import Job, warm_up

#: Engines that can be asked for by name, beside our own.
PEERS = ("vllm", "transformers")


@dataclass(frozen=True, slots=True)
class Bench:
    """What every engine is given. `flags` are settings of `millrace worker`, the model's directory among them."""

    directory: Path
    load_format: str
    temperature: float
    repeats: int
    flags: dict[str, Any]
    #: Most tokens of a sequence that the model can have.
    context: int
    warm_up: list[Job]
    workloads: list[tuple[str, list[Job]]]


def make_bench(
    flags: Mapping[str, Any], temperature: float, repeats: int, workloads: Callable[[int], list[tuple[str, list[Job]]]]
) -> tuple[Bench, int]:
    """The bench of these settings, with the workloads for a vocabulary's size, and that size.

    Raises MillraceError, ValueError.
    """
    from millrace_worker import config
    from millrace_worker.model_path import resolve_model
    from millrace_worker.models.config import load_config

    engine = config.load(flags).engine
    directory = resolve_model(flags["model"])
    shape = load_config(directory)
    bench = Bench(
        directory,
        engine.load_format,
        temperature,
        repeats,
        {**flags, "model": str(directory.absolute())},
        shape.max_context,
        warm_up(shape.vocab_size, min(shape.max_context, engine.max_model_len or shape.max_context)),
        workloads(shape.vocab_size),
    )
    return bench, shape.vocab_size


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """How peers are run. `timeout` is the longest silence, `limit` the most seconds of a workload of transformers."""

    python: str | None = None
    pythonpath: str | None = None
    vllm_args: dict[str, Any] = field(default_factory=dict)
    timeout: float = 900.0
    limit: float = 120.0


def parse_peers(text: str) -> list[str]:
    """The engines of a comma-separated list. Raises ValueError."""
    peers = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in peers if name not in PEERS]
    if unknown:
        raise ValueError(f"--vs knows {' and '.join(PEERS)}, not {unknown[0]!r}")
    return peers


def parse_arguments(text: str) -> dict[str, Any]:
    """Arguments of vllm.LLM from a JSON object. Raises ValueError."""
    try:
        values = json.loads(text)
    except ValueError as e:
        raise ValueError(f"--vs-args is no JSON: {e}") from e
    if not isinstance(values, dict):
        raise ValueError(f"--vs-args is a JSON object of arguments of vllm.LLM, not {text!r}")
    return values


def run_engine(
    name: str, bench: Bench, options: PeerOptions, about: dict[str, dict[str, str]], say: Callable[[str], None]
) -> Iterator[Row]:
    """A row for each workload, as soon as it is known. `about` is given what the engine says about itself."""
    log = log_file(name)
    open_, runs, reason = [workload for workload, _ in bench.workloads], [], ""
    try:
        with scratch() as directory, closing(_start(name, bench, options, directory, log)) as told:
            for event in told:
                workload = event.get("workload")
                if event["event"] == "ready":
                    about[name] = event["about"]
                    say(f"{name} is loaded")
                elif event["event"] == "run":
                    runs.append(event)
                    say(f"{name}, {workload}: {event['seconds']:.1f} s")
                elif workload is None:
                    reason = event["reason"]
                else:
                    open_.remove(workload)
                    failed = event.get("reason", "")
                    yield (
                        Row(engine=name, workload=workload, failed=failed, log=str(log))
                        if failed
                        else best(name, workload, runs)
                    )
                    runs = []
    except PeerFailed as e:
        reason = reason or str(e)
    if runs:
        yield best(name, open_.pop(0), runs)
    for workload in open_:
        yield Row(engine=name, workload=workload, failed=reason or last_line(log), log=str(log))


def _start(
    name: str, bench: Bench, options: PeerOptions, directory: Path, log: Path
) -> Generator[dict[str, Any], None, None]:
    python, first, inherit = sys.executable, [directory], True
    # What a front gives its engine; on a CPU it decides.
    environ = engine_environ() if name != "vllm" else None
    settings, limit = {}, None
    if name == ENGINE:
        settings = bench.flags
    elif name == "vllm":
        settings = _vllm_arguments(bench) | options.vllm_args
        if options.python is not None:
            python, inherit = _absolute(options.python), False
        first += [Path(entry) for entry in (options.pythonpath or "").split(os.pathsep) if entry]
    else:
        limit = options.limit
    task = Task(
        str(bench.directory.absolute()),
        bench.load_format,
        bench.temperature,
        bench.repeats,
        settings,
        bench.warm_up,
        bench.workloads,
        limit,
    )
    file = directory / "jobs.json"
    task.write(str(file))
    command = [python, "-m", f"millrace_bench.peers.{name}_peer", str(file)]
    return events(command, peer_environ(first, inherit=inherit, environ=environ), directory, log, options.timeout)


def _vllm_arguments(bench: Bench) -> dict[str, Any]:
    """Arguments of vllm.LLM that make it run the same as we do; all others stay at its defaults."""
    return {
        "skip_tokenizer_init": True,
        "dtype": "bfloat16",
        "gpu_memory_utilization": bench.flags.get("gpu_memory_utilization", 0.9),
        "max_model_len": bench.flags.get("max_model_len") or min(16384, bench.context),
        "seed": 0,
    }


def _absolute(python: str) -> str:
    """Not resolved: a virtual environment is known by the link's own place."""
    found = shutil.which(python)
    return python if found is None else str(Path(found).absolute())
