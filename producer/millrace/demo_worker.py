"""The worker process of the demo."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from millrace_schemas import MillraceError

from .errors import WorkerDied

#: The queue's name for the packaged model, and the name of that model.
MODEL = "demo"
_LAST_LINES = 15
_GRACE = 5.0
#: Short, so that heartbeats come often: the report wants the numbers of the last one.
_LEASE = 10.0


class DemoWorker:
    """`python -m millrace_worker` on the packaged model, from start to the end of its drain."""

    def __init__(self, redis_url: str, log: Path):
        self._log = log
        self._redis_url = redis_url
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> DemoWorker:
        for package in ("millrace_worker", "torch"):
            if importlib.util.find_spec(package) is None:
                raise MillraceError(f'the demo runs a model and needs {package}: pip install "millrace[worker]"')
        command = [
            *(sys.executable, "-m", "millrace_worker"),
            *("--model", MODEL),
            *("--served-model-name", MODEL),
            *("--redis-url", self._redis_url),
            *("--lease", str(_LEASE)),
            *("--grace", str(_GRACE)),
        ]
        with self._log.open("wb") as log:
            # A session of its own: Ctrl-C ends the demo, and the demo ends its worker.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(_GRACE + 10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def check(self, doing: str) -> None:
        """Raises WorkerDied when the process has ended."""
        code = self._process.poll() if self._process else None
        if code is not None:
            raise WorkerDied(f"the worker ended with code {code} {doing}; its last lines:", self.last_lines())

    def last_lines(self) -> str:
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return "\n".join(text.splitlines()[-_LAST_LINES:])
