"""Millrace's engine alone on a benchmark's jobs, in a process of its own as its peers are."""

from __future__ import annotations

import sys

from millrace_bench import throughput
from millrace_bench.peers.protocol import Run, Task, serve
from millrace_bench.workloads import Job
from millrace_worker import config
from millrace_worker.engine import garbage
from millrace_worker.engine.engine import Engine


class MillraceEngine:
    """`task.settings` are flags of `millrace worker`."""

    def __init__(self, task: Task) -> None:
        self._engine = Engine(config.load(task.settings).engine)
        garbage.settle()
        self._temperature = task.temperature
        self.about = {"blocks": str(self._engine.ready.num_blocks)}

    def run(self, jobs: list[Job], limit_s: float | None) -> Run:
        """Every answer to its length; `limit_s` is not kept."""
        found = throughput.run(self._engine, jobs, self._temperature)
        return Run(found.seconds, found.prompt_tokens, found.output_tokens, found.figures())


if __name__ == "__main__":
    sys.exit(serve(MillraceEngine))
