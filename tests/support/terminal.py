"""Commands of `millrace` in a terminal, and the environment that they run in."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_PATHS = os.pathsep.join(str(_ROOT / part) for part in ("schemas", "producer"))


def environment(columns: int = 80) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": _PATHS, "COLUMNS": str(columns), "TERM": "xterm"}


@contextmanager
def in_terminal(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`millrace` in a terminal of 80 columns, and that terminal's other end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "millrace", *arguments]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(), start_new_session=True
    )
    os.close(theirs)
    try:
        yield process, ours
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(ours)


def read_until(terminal: int, wanted: bytes) -> bytes:
    seen = b""
    limit = time.monotonic() + 30
    while wanted not in seen:
        assert time.monotonic() < limit, seen
        if select.select([terminal], [], [], 1)[0]:
            try:
                seen += os.read(terminal, 65536)
            except OSError:
                # The other end is closed.
                assert wanted in seen, seen
    return seen
