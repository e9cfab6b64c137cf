"""The processes of a whole installation, each of which can be killed, paused and started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from millrace.embedded import find_redis_server, free_port

ACCESS_KEY, SECRET_KEY, BUCKET = "chaos", "chaos-secret", "files"
#: Seconds that a part has to start, or to end.
_PATIENCE = 60.0


class Part:
    """One process with its descendants, in a session of its own; what it says is added to one log."""

    def __init__(self, name: str, command: Sequence[object], directory: Path, port: int | None = None):
        self.name = name
        self.log = directory / f"{name}.log"
        self._command = [str(word) for word in command]
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *, wait: bool = False) -> None:
        """`wait`: until its port takes connections. Raises RuntimeError when it does not."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)
        limit = time.monotonic() + _PATIENCE
        while wait and self._port is not None:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
                return
            if not self.is_alive or time.monotonic() > limit:
                raise RuntimeError(f"{self.name} did not start: {self.log.read_text(errors='replace')[-500:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """Everything of it at once, as when its machine is gone."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(_PATIENCE)

    def stop(self) -> None:
        """As an operator would, and by force when it does not end."""
        if self.is_alive:
            assert self._process is not None
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(30)
        self.kill()


class Installation:
    """Redis, an S3 server, two workers, two bulk services and a gateway, all in `directory`.

    Redis writes every change to its file, and syncs it, before it answers (appendonly, appendfsync always): only then
    is no write lost that somebody was told of. With everysec, Redis answers before the write while a sync is slow.
    """

    def __init__(self, directory: Path, *, worker_lease: float, bulk_lease: float, rows: int, step: float):
        redis_port, s3_port, http_port = free_port(), free_port(), free_port()
        self.directory = directory
        self.redis_url = f"redis://127.0.0.1:{redis_port}/0"
        self.http_url = f"http://127.0.0.1:{http_port}"
        #: Where the S3 server keeps its buckets.
        self.buckets = directory / "s3"
        (self.buckets / BUCKET).mkdir(parents=True)
        (directory / "redis").mkdir()
        storage = (
            "env", f"AWS_ACCESS_KEY_ID={ACCESS_KEY}", f"AWS_SECRET_ACCESS_KEY={SECRET_KEY}",
            "AWS_DEFAULT_REGION=us-east-1", f"AWS_ENDPOINT_URL_S3=http://127.0.0.1:{s3_port}",
        )  # fmt: skip
        python = (sys.executable, "-m")
        self.redis = Part(
            "redis",
            (
                find_redis_server(), "--port", redis_port, "--bind", "127.0.0.1", "--dir", directory / "redis",
                "--save", "", "--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction",
            ),
            directory,
            redis_port,
        )  # fmt: skip
        rclone = shutil.which("rclone") or Path(sys.executable).parent / "rclone"
        self.s3 = Part(
            "s3",
            (
                rclone, "serve", "s3", "--addr", f"127.0.0.1:{s3_port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}",
                "--config", directory / "rclone.conf", "--vfs-cache-mode", "off", self.buckets,
            ),
            directory,
            s3_port,
        )  # fmt: skip
        self.gateway = Part(
            "gateway",
            (
                *storage, *python, "millrace", "gateway", "--port", http_port, "--redis-url", self.redis_url,
                "--files", f"s3://{BUCKET}/kept",
            ),
            directory,
            http_port,
        )  # fmt: skip
        worker = (*python, "millrace_bench.bulk_chaos_worker", self.redis_url, worker_lease, rows, step)
        self.workers = [Part(f"worker-{n}", worker, directory) for n in range(2)]
        bulk = (
            *storage, *python, "millrace", "bulk", "--redis-url", self.redis_url, "--lease", bulk_lease, "--flush",
            "0.5", "--window", "512",
        )  # fmt: skip
        self.services = [Part(f"bulk-{n}", bulk, directory) for n in range(2)]

    @property
    def parts(self) -> list[Part]:
        return [self.redis, self.s3, *self.workers, *self.services, self.gateway]

    def start(self) -> None:
        """Raises RuntimeError when a part does not start."""
        for part in self.parts:
            part.start(wait=part in (self.redis, self.s3))
        limit = time.monotonic() + _PATIENCE
        for worker in self.workers:
            while b'"serving"' not in worker.log.read_bytes():
                if not worker.is_alive or time.monotonic() > limit:
                    raise RuntimeError(f"{worker.name} did not start: {worker.log.read_text()[-500:]}")
                time.sleep(0.05)

    def restart(self, part: Part) -> None:
        part.start(wait=part in (self.redis, self.s3))

    def stop(self) -> None:
        """In the order in which nobody misses anybody."""
        for part in reversed(self.parts):
            part.stop()

    def turns(self) -> list[int]:
        """Processes that have a shard or a batch in their hands."""
        return [turn for rq in self.rq_workers() for turn in children(rq) if _is_turn(turn)]

    def rq_workers(self) -> list[int]:
        return [rq for service in self.services if service.is_alive for rq in children(service.pid)]

    def engines(self) -> list[int]:
        return [engine for worker in self.workers if worker.is_alive for engine in children(worker.pid)]


def children(pid: int) -> list[int]:
    """Of all threads of a process; none when it is gone."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def _is_turn(pid: int) -> bool:
    """RQ gives the process of a job a group of its own, and its scheduler none."""
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False
