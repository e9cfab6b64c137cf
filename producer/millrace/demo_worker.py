"""The worker process of `millrace demo` and `millrace up`."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from millrace_schemas import MillraceError

from .errors import WorkerDied

#: The packaged model, and the name of its queue.
MODEL = "demo"
_LAST_LINES = 15
_GRACE = 5.0
#: Short, so that heartbeats come often: the report wants the numbers of the last one.
_LEASE = 10.0


class DemoWorker:
    """`python -m millrace_worker` on the packaged model, or another, from start to the end of its drain.

    `options` are further flags for it.
    """

    def __init__(
        self, redis_url: str, log: Path, *, model: str = MODEL, lease: float = _LEASE, options: Sequence[str] = ()
    ):
        self._model = model
        self._options = options
        self._lease = lease
        #: The queue's name.
        self.served_name = model.rstrip("/").rsplit("/", 1)[-1]
        self._log = log
        self._redis_url = redis_url
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> DemoWorker:
        for package in ("millrace_worker", "torch"):
            if importlib.util.find_spec(package) is None:
                raise MillraceError(f'running a model needs {package}: pip install "millrace[worker]"')
        command = [
            *(sys.executable, "-m", "millrace_worker"),
            *("--model", self._model),
            *("--served-model-name", self.served_name),
            *("--redis-url", self._redis_url),
            *("--lease", str(self._lease)),
            *("--grace", str(_GRACE)),
            *self._options,
        ]
        with self._log.open("wb") as log:
            # A session of its own: Ctrl-C ends the command, and the command ends its worker.
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
