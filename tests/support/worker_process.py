"""Real worker processes that tests start, stop and kill."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType

from nursery import Forked, worker_nursery
from queue_probe import MODEL

_SUPPORT = Path(__file__).parent


class WorkerProcess:
    """One worker. Settings are fields of its configuration; `engine` are arguments of the fake engine."""

    def __init__(self, url: str, directory: Path, *, engine: tuple[str, ...] = (), **settings: object):
        self._directory = directory
        self.log_path = directory / f"worker-{time.monotonic_ns()}.log"
        chosen = {
            "redis_url": url,
            "served_model_name": MODEL,
            "lease": 1.0,
            "grace": 10.0,
            "checkpoint_tokens": 8,
            "checkpoint_interval": 0.2,
            "retry_delay": 0.1,
            "log_level": "debug",
            **settings,
        }
        script = str(_SUPPORT / "run_worker.py")
        self._arguments = [script, *(f"{name}={value}" for name, value in chosen.items()), "--", *engine]
        self._process: Forked | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def start(self, *, wait: bool = True) -> WorkerProcess:
        # What an earlier one has said is no sign of this one.
        self.log_path.write_bytes(b"")
        self._process = worker_nursery.run(self._arguments, self.log_path)
        limit = time.monotonic() + 30
        while wait and '"serving"' not in self.log:
            assert self._process.poll() is None, self.log
            assert time.monotonic() < limit, self.log
            time.sleep(0.02)
        return self

    def engine_pid(self) -> int:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        assert len(children) == 1, children
        return int(children[0])

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """As a crash: the engine, which reads the end of the socket, goes by itself."""
        self.signal(signal.SIGKILL)
        self.wait()

    def wait(self, timeout: float = 30.0) -> int:
        assert self._process is not None
        return self._process.wait(timeout)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def __enter__(self) -> WorkerProcess:
        return self if self._process else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if error is not None:
            print(f"--- log of worker {self.log_path.name}:\n{self.log}")
