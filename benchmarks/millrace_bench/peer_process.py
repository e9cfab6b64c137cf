"""An engine's process: started, listened to until it is done, and gone with all its children at the end."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_JSON = dict[str, Any]
#: Seconds that a process has to end by itself, and that its children have to be gone.
_END = 30.0
#: Bytes at the end of a log in which its last line is looked for.
_TAIL = 4096


class PeerFailed(Exception):
    """A process ended, or was silent for too long, before it was done. In words for a row of the table."""


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory with this package in it and nothing else, to start a peer in.

    A checkout's root would put its folders on Python's path, and site-packages our packages before the peer's.
    """
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as name:
        package = Path(__file__).resolve().parent
        (Path(name) / package.name).symlink_to(package, target_is_directory=True)
        yield Path(name)


def log_file(engine: str) -> Path:
    """Where an engine's words go. It stays, so that a failure can be looked into."""
    directory = Path(tempfile.gettempdir()) / "millrace-bench" / "logs"
    directory.mkdir(parents=True, exist_ok=True)
    return directory / f"{engine}-{os.getpid()}.log"


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return "it has no log"
    return next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")


def events(
    command: Sequence[str], environ: Mapping[str, str], directory: Path, log: Path, silence: float
) -> Generator[_JSON, None, None]:
    """What the process says until it is done; close the generator to end the process early.

    Raises PeerFailed when it cannot be started, ends too soon, or says nothing for `silence` seconds.
    """
    with log.open("wb") as words:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=words,
                env=environ,
                cwd=directory,
                start_new_session=True,
            )
        except OSError as e:
            raise PeerFailed(f"{command[0]} cannot be started: {e.strerror}") from e
    assert process.stdout is not None
    done = False
    try:
        for line in _lines(process.stdout, silence):
            event = _event(line)
            if event is None:
                continue
            if event["event"] == "done":
                done = True
                return
            yield event
        code = process.wait()
        raise PeerFailed(f"it ended with code {code}: {last_line(log)}")
    finally:
        _end(process, patience=_END if done else 0.0)


def _lines(pipe: IO[bytes], silence: float) -> Iterator[bytes]:
    """Lines until the end of the pipe."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            if not selector.select(silence):
                raise PeerFailed(f"it said nothing for {silence:g} s (--vs-timeout)")
            chunk = os.read(pipe.fileno(), 65536)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines


def _event(line: bytes) -> _JSON | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("event"), str) else None


def _end(process: subprocess.Popen[bytes], patience: float) -> None:
    """Ends the process and all of its session's: the device's memory is free when the last one is gone."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(patience)
    assert process.stdout is not None
    limit = time.monotonic() + _END
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        while time.monotonic() < limit:
            os.killpg(process.pid, 0)
            time.sleep(0.05)
    process.stdout.close()
