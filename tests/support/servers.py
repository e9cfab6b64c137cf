"""Real servers for tests: S3 through rclone. (Redis is millrace.embedded.)"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from millrace.embedded import free_port

ACCESS_KEY, SECRET_KEY = "millrace-test", "millrace-test-secret"


def set_credentials(patch: pytest.MonkeyPatch) -> None:
    """Where boto3 looks for them, here and in processes that are started."""
    patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")


class S3Server:
    """`rclone serve s3` over a directory: every folder in it is a bucket."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        rclone = shutil.which("rclone") or str(Path(sys.executable).parent / "rclone")
        self._process = subprocess.Popen(
            [rclone, "serve", "s3", "--addr", f"127.0.0.1:{self.port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}",
             "--config", str(self.directory.parent / "rclone.conf"), "--vfs-cache-mode", "off", str(self.directory)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        limit = time.monotonic() + 20
        while time.monotonic() < limit:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("rclone serve s3 did not start")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None
