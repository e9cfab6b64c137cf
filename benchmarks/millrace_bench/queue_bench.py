"""`millrace bench queue`: small jobs through Millrace and through other queues, each on a Redis of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from millrace.embedded import EmbeddedRedis

from .cpu_time import cpu_seconds
from .queue_peers import program

#: What a process does here, and the process.
_Process = tuple[str, subprocess.Popen[bytes]]
_LOOK = 0.02
#: Bytes of a process's output that are shown when it fails, from its end.
_TAIL = 2000


@dataclass(frozen=True, slots=True)
class System:
    """A queue in one of its settings."""

    #: Module in queue_peers, and what it is called with.
    module: str
    variant: str
    title: str
    settings: str
    #: What becomes of a job whose worker is killed.
    delivery: str
    install: str
    #: Jobs at most; 0: as many as all others. For systems that would take minutes.
    most: int = 0


#: Jobs of systems that do a few hundred a second: enough for their rates, and all systems together take minutes.
_FEW = 4_000
_AT_LEAST_ONCE, _AT_MOST_ONCE = "at least once", "at most once"
_TASKIQ = "100 jobs at once, 100 fetched ahead, uvloop, connections: 128"
_CELERY = "prefetch 128 each, no events, gossip, mingle, heartbeat"
SYSTEMS: dict[str, System] = {
    "millrace": System(
        *("millrace", "interactive", "Millrace"),
        "one worker (front and engine process), 256 rows, submit_many",
        *("at least once, one result", 'pip install "millrace[worker]"'),
    ),
    "millrace-batch": System(
        *("millrace", "batch", "Millrace, batch lane"),
        "as above",
        *("at least once, one result", 'pip install "millrace[worker]"'),
    ),
    "rq": System(
        *("rq", "simple", "RQ SimpleWorker"),
        "no fork, JSON, enqueue_many by 500",
        *(_AT_MOST_ONCE, "pip install rq hiredis"),
        most=_FEW,
    ),
    "rq-fork": System(
        *("rq", "fork", "RQ Worker"),
        "a fork each, JSON, enqueue_many by 500",
        *(_AT_MOST_ONCE, "pip install rq hiredis"),
        most=500,
    ),
    "arq": System(
        *("arq", "", "arq"),
        "max_jobs 100, poll_delay 0.01 s, queue_read_limit 1,000; enqueue_job, 128 at once",
        # In an environment of its own: it needs redis-py below 6.
        *(_AT_LEAST_ONCE, "python -m venv arq; arq/bin/pip install arq hiredis; and pass --python arq=arq/bin/python"),
    ),
    "taskiq": System(
        *("taskiq", "list", "taskiq, ListQueueBroker"),
        f"{_TASKIQ}; kiq, 128 at once",
        *(_AT_MOST_ONCE, "pip install taskiq taskiq-redis hiredis uvloop"),
    ),
    "taskiq-stream": System(
        *("taskiq", "stream", "taskiq, RedisStreamBroker"),
        f"{_TASKIQ}; kiq, 128 at once",
        *(_AT_LEAST_ONCE, "pip install taskiq taskiq-redis hiredis uvloop"),
    ),
    "celery": System(
        *("celery", "prefork", "Celery, prefork"),
        f"2 processes, {_CELERY}; a group",
        *(_AT_MOST_ONCE, 'pip install "celery[redis]" hiredis'),
        most=_FEW,
    ),
    "celery-threads": System(
        *("celery", "threads", "Celery, threads"),
        f"2 threads, {_CELERY}; a group",
        *(_AT_MOST_ONCE, 'pip install "celery[redis]" hiredis'),
        most=_FEW,
    ),
    "celery-solo": System(
        *("celery", "solo", "Celery, solo"),
        f"no pool, {_CELERY}; a group",
        *(_AT_MOST_ONCE, 'pip install "celery[redis]" hiredis'),
        most=_FEW,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Load:
    """How much of what; `pythons` are interpreters of other environments, by module in queue_peers."""

    jobs: int = 20_000
    systems: tuple[str, ...] = tuple(SYSTEMS)
    #: The better of so many runs counts.
    repeats: int = 1
    #: Seconds that a run may take.
    deadline: float = 180.0
    pythons: Mapping[str, str] = field(default_factory=dict)


class Failed(Exception):
    """A run came to no end; the words say why, and quote what its processes said last."""


class NotInstalled(Exception):
    """The system is not there."""


def run(load: Load) -> Iterator[dict[str, Any]]:
    """A row for each system, as soon as it is measured: its figures, or under `problem` why there are none."""
    for name in load.systems:
        system = SYSTEMS[name]
        jobs = min(load.jobs, system.most or load.jobs)
        row: dict[str, Any] = {
            "system": name, "title": system.title, "settings": system.settings, "delivery": system.delivery,
            "jobs": jobs,
        }  # fmt: skip
        try:
            row |= _best([_measure(system, jobs, load) for _ in range(load.repeats)], jobs)
            if row["right"] < jobs:
                row["problem"] = f"{jobs - row['right']} of {jobs} answers were wrong"
        except NotInstalled:
            row["problem"] = f"not installed; run: {system.install}"
        except Failed as e:
            row["problem"] = str(e)
        # Of the minute of its last run.
        row["load"] = round(os.getloadavg()[0], 2)
        yield row


def _best(runs: Sequence[Mapping[str, Mapping[str, Any]]], jobs: int) -> dict[str, Any]:
    """Rates of the fastest run of each order; `right`: answers that were, in the run with the fewest."""
    backlog = [found[program.BACKLOG] for found in runs]
    beside = [found[program.BESIDE] for found in runs]
    return {
        "enqueue_per_s": round(jobs / min(found["enqueue_s"] for found in backlog)),
        "worker_per_s": round(jobs / min(found["worker_s"] for found in backlog)),
        "read_per_s": round(jobs / min(found["read_s"] for found in backlog)),
        "jobs_per_s": round(jobs / min(found["total_s"] for found in beside)),
        "all_jobs_per_s": [round(jobs / found["total_s"]) for found in beside],
        "all_worker_per_s": [round(jobs / found["worker_s"]) for found in backlog],
        "cpu_us": {
            part: round(min(found[f"{part}_cpu_s"] for found in beside) / jobs * 1e6)
            for part in ("producer", "worker", "redis")
        },
        "right": min(found["right"] for found in (*backlog, *beside)),
        "versions": beside[0]["versions"],
    }


def _measure(system: System, jobs: int, load: Load) -> dict[str, dict[str, Any]]:
    python = load.pythons.get(system.module, sys.executable)
    found = {}
    for order in (program.BESIDE, program.BACKLOG):
        with tempfile.TemporaryDirectory(prefix="millrace-bench-") as name, EmbeddedRedis() as server:
            found[order] = _Run(system, python, server, Path(name), load.deadline).run(jobs, order)
    return found


class _Run:
    """One producer and one worker, from an empty Redis to the last result."""

    def __init__(self, system: System, python: str, server: EmbeddedRedis, directory: Path, deadline: float):
        self._system = system
        self._python = python
        self._server = server
        self._directory = directory
        self._deadline = deadline
        self._until = time.monotonic() + deadline

    def run(self, jobs: int, order: str) -> dict[str, Any]:
        """What the producer found. Raises Failed, NotInstalled."""
        found = self._directory / program.FOUND
        with self._process("produce", str(jobs), order) as producer:
            if order == program.BACKLOG:
                self._wait_for(self._directory / program.ENQUEUED, producer)
            with self._process("work") as worker:
                self._wait_for(self._directory / program.BEGUN, producer, worker)
                before = self._cpu(worker)
                self._wait_for(self._directory / program.ENDED, producer, worker)
                after = self._cpu(worker)
                self._wait_for(found, producer, worker)
        answer: dict[str, Any] = json.loads(found.read_text())
        return answer | {name: after[name] - before[name] for name in after}

    def _cpu(self, worker: _Process) -> dict[str, float]:
        """Seconds of processor time that worker and Redis have had."""
        return {"worker_cpu_s": cpu_seconds(worker[1].pid), "redis_cpu_s": cpu_seconds(self._server.pid or 0)}

    @contextmanager
    def _process(self, role: str, *args: str) -> Iterator[_Process]:
        """A program of the system in a session of its own, so that what it starts ends with it."""
        module = f"millrace_bench.queue_peers.{self._system.module}"
        command = [
            self._python,
            "-m",
            module,
            role,
            self._server.url,
            str(self._directory),
            self._system.variant,
            *args,
        ]
        # The Python of another environment finds the programs in its working directory.
        where = Path(__file__).parents[1]
        with (self._directory / role).open("wb") as output:
            process = subprocess.Popen(
                command, cwd=where, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        try:
            yield role, process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _wait_for(self, path: Path, *processes: _Process) -> None:
        while not path.exists():
            for role, process in processes:
                code = process.poll()
                if code == program.NOT_INSTALLED:
                    raise NotInstalled(self._system.module)
                if code is not None and not path.exists():
                    raise Failed(f"its {_ROLES[role]} ended with exit code {code}. {self._said()}")
            if time.monotonic() > self._until:
                raise Failed(f"no end after {self._deadline:g} s. {self._said()}")
            time.sleep(_LOOK)

    def _said(self) -> str:
        """The last words of both processes."""
        words = []
        for role, name in _ROLES.items():
            path = self._directory / role
            said = path.read_bytes()[-_TAIL:].decode(errors="replace").strip() if path.exists() else ""
            words.append(f"Its {name} said: {said or 'nothing'}")
        return "\n".join(words)


_ROLES = {"produce": "producer", "work": "worker"}
