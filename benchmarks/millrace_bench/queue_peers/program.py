"""What all programs of the systems do alike: hand jobs over, time that, read every result back and check it.

Two command lines, a process each:

    produce <redis url> <directory> <variant> <jobs> <beside | backlog>
    work    <redis url> <directory> <variant>

`beside`: a worker runs all the while, and a few jobs go first until it is warm. `backlog`: the worker starts when all
jobs are in the queue. What they tell each other lies in files in `directory`. Times are of time.monotonic(), which on
Linux is one clock for all processes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

#: Exit code of a program whose system is not installed.
NOT_INSTALLED = 3
BESIDE, BACKLOG = "beside", "backlog"
#: Files of a directory: it is warm and begins; all jobs are in the queue; the first one runs; all were read; what the
#: producer found, as JSON.
BEGUN, ENQUEUED, FIRST, ENDED, FOUND = "begun", "enqueued", "first", "ended", "found.json"
_WARM_UP = 64
#: Keys looked at in one command, and seconds between two looks when a result is not there.
_KEYS, _LOOK = 256, 0.02
#: Seconds in which whoever watches from outside sees a file of this directory.
SEEN = 0.1


class Peer(Protocol):
    """One system, over one Redis. `text` in, the same text out, is a job."""

    @property
    def packages(self) -> tuple[str, ...]:
        """Distributions whose versions belong to a figure."""

    def enqueue(self, texts: Sequence[str]) -> list[Any]:
        """Hands jobs over in the system's bulk way; their handles, in order."""

    def result_keys(self, handles: Sequence[Any]) -> list[str]:
        """The Redis keys that are there as soon as the jobs' results are stored."""

    def read(self, handles: Sequence[Any]) -> list[str]:
        """Waits for all results as the system's users do, and returns them in order."""

    def work(self) -> None:
        """Runs a worker until it is killed; it calls `first_job` and returns the text."""


class _FirstJob:
    """Notes when the first job of a run begins."""

    def __init__(self) -> None:
        self._path: Path | None = None

    def watch(self, directory: Path) -> None:
        self._path = directory / FIRST

    def __call__(self) -> None:
        if self._path is None:
            return
        path, self._path = self._path, None
        try:
            # Forked processes come here once each.
            with path.open("x") as file:
                file.write(repr(time.monotonic()))
        except FileExistsError:
            pass


#: Each job calls this; it costs nothing but the first time.
first_job = _FirstJob()


def texts_of(count: int) -> list[str]:
    """What is asked: each text is one's own, and short."""
    return [f"What becomes of grain number {number}?" for number in range(count)]


def run(make: Callable[[str, str], Peer]) -> int:
    """The program; `make(url, variant)` makes its Peer. Returns the exit code."""
    command, url, place, variant = sys.argv[1:5]
    directory = Path(place)
    try:
        peer = make(url, variant)
    except ImportError as e:
        print(f"not installed: {e}", flush=True)
        return NOT_INSTALLED
    if command == "work":
        first_job.watch(directory)
        peer.work()
        return 0
    found = produce(peer, url, directory, int(sys.argv[5]), sys.argv[6])
    found["versions"] = _versions(*peer.packages)
    part = directory / f"{FOUND}.part"
    part.write_text(json.dumps(found))
    part.rename(directory / FOUND)
    # Some clients leave threads behind that do not end by themselves.
    sys.stdout.flush()
    os._exit(0)


def produce(peer: Peer, url: str, directory: Path, jobs: int, order: str) -> dict[str, Any]:
    """Times, in seconds, and `right`, how many answers were."""
    if order == BESIDE:
        peer.read(peer.enqueue(texts_of(_WARM_UP)))
    texts = texts_of(jobs)
    (directory / BEGUN).touch()
    time.sleep(SEEN)
    cpu, began = time.process_time(), time.monotonic()
    handles = peer.enqueue(texts)
    enqueued = time.monotonic()
    (directory / ENQUEUED).touch()
    found: dict[str, Any] = {"enqueue_s": enqueued - began}
    if order == BACKLOG:
        _wait_for(url, peer.result_keys(handles))
        found["worker_s"] = time.monotonic() - float((directory / FIRST).read_text())
    reading = time.monotonic()
    answers = peer.read(handles)
    ended = time.monotonic()
    found["producer_cpu_s"] = time.process_time() - cpu
    (directory / ENDED).touch()
    time.sleep(SEEN)
    found |= {"read_s": ended - reading, "total_s": ended - began, "answers": len(answers)}
    found["right"] = sum(answer == text for answer, text in zip(answers, texts, strict=False))
    return found


def _wait_for(url: str, keys: Sequence[str]) -> None:
    """Until all are there. They come about in order, so most looks are at the next few."""
    import redis

    with redis.Redis.from_url(url) as client:
        at = 0
        while at < len(keys):
            some = keys[at : at + _KEYS]
            if client.exists(*some) == len(some):
                at += len(some)
            else:
                time.sleep(_LOOK)


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
