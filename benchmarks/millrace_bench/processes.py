"""Other modules of this package as processes of their own."""

from __future__ import annotations

import subprocess
import sys


def start(module: str, *args: object) -> subprocess.Popen[str]:
    """`python -m millrace_bench.<module>`, with pipes to its input and output."""
    command = [sys.executable, "-m", f"millrace_bench.{module}", *map(str, args)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    """Until its first line is `word`. Raises RuntimeError when it is another one."""
    assert process.stdout is not None
    if process.stdout.readline().strip() != word:
        process.kill()
        raise RuntimeError(f"{process.args!r} did not say that it is {word}")
