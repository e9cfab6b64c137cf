"""A process that has imported what many processes of the tests need, and forks itself for each of them.

What is forked is a process of its own as any other; only the half second in which it would import is saved.

As a program:  nursery.py DESCRIPTOR MODULE...  imports the modules and then obeys the orders from that socket.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any


class Forked:
    """A process of a nursery, with the part of Popen that tests use."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid = pid
        self._nursery = nursery
        self._end = os.pidfd_open(pid)
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code, or minus the signal that ended it; None while it runs."""
        if self._code is None and select.select([self._end], [], [], 0)[0]:
            self._code = self._nursery.reap(self.pid)
            os.close(self._end)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Likewise. Raises subprocess.TimeoutExpired."""
        if self._code is None:
            select.select([self._end], [], [], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        # Until it is reaped, nobody else has its id.
        if self._code is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Nursery:
    """Started with the first process that is asked for; ends with this one."""

    def __init__(self, path: str, *modules: str) -> None:
        """`path` is its PYTHONPATH, and `modules` are what it imports."""
        self._path, self._modules = path, modules
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, arguments: list[str], log: Path, *, session: bool = False) -> Forked:
        """Forks a process that goes on as `python ARGUMENTS`, a script or -m and a module, in this environment.

        What it says is appended to `log`. With `session` it has one of its own, and so a process group.
        """
        order = {"argv": arguments, "log": str(log), "cwd": str(Path.cwd()), "session": session}
        return Forked(self, self._ask({**order, "environment": {**os.environ, "PYTHONPATH": self._path}}))

    def reap(self, pid: int) -> int:
        return self._ask({"reap": pid})

    def _ask(self, order: dict[str, Any]) -> int:
        with self._lock:
            if self._socket is None:
                self._socket = self._start()
            self._socket.sendall(json.dumps(order).encode() + b"\n")
            answer = self._socket.recv(64)
        assert answer, "the nursery is gone"
        return int(answer)

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        command = [sys.executable, __file__, str(theirs.fileno()), *self._modules]
        environment = {**os.environ, "PYTHONPATH": self._path}
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        theirs.close()
        atexit.register(self._stop)
        return ours

    def _stop(self) -> None:
        assert self._socket is not None
        assert self._process is not None
        # It ends when it reads the end of the orders.
        self._socket.close()
        self._process.wait()


def _parts(*names: str) -> str:
    root = Path(__file__).resolve().parents[2]
    return os.pathsep.join(str(root / name) for name in names)


#: Of those that run fake engines.
worker_nursery = Nursery(
    _parts("schemas", "kernels", "producer", "worker", "tests/support"),
    *("fake_text", "millrace_worker.cli", "millrace_worker.service"),
)
#: Of those that a machine without workers runs.
producer_nursery = Nursery(
    _parts("schemas", "producer"), "millrace.cli", "millrace.bulk.service", "millrace.gateway.server"
)


def _become(order: dict[str, Any]) -> None:
    if order["session"]:
        os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv = order["argv"]
    if sys.argv[0] == "-m":
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


def _serve(descriptor: int) -> None:
    with socket.socket(fileno=descriptor) as orders:
        for line in orders.makefile("r"):
            order = json.loads(line)
            if "reap" in order:
                answer = os.waitstatus_to_exitcode(os.waitpid(order["reap"], 0)[1])
            elif (answer := os.fork()) == 0:
                break
            orders.sendall(str(answer).encode())
        else:
            return
    _become(order)


if __name__ == "__main__":
    for module in sys.argv[2:]:
        import_module(module)
    _serve(int(sys.argv[1]))
