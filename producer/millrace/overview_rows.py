"""An overview in words: the cells of its tables, the same on the page and in the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from .overview import Overview

#: Headings of the columns, by table.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "queues": ("model", "lane", "waiting", "in flight", "oldest", "delayed", "dead"),
    "workers": ("worker", "model", "device", "running", "waiting", "KV", "finished", "tokens", "beat"),
    "dead": ("age", "model", "code", "attempts", "job", "reason"),
}

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))
_REPLACEMENT = "\ufffd"


def rows_of(overview: Overview) -> dict[str, list[list[str]]]:
    """The rows of every table, as cells under COLUMNS; safe to print in a terminal, not yet escaped for HTML."""
    now = max((queue.at for queue in overview.queues), default=0.0)
    queues = [
        [
            queue.model, lane, f"{numbers.waiting:,}", f"{numbers.in_flight:,}", age(numbers.oldest_waiting),
            f"{queue.delayed:,}", f"{queue.dead:,}",
        ]
        for queue in overview.queues
        for lane, numbers in queue.lanes.items()
    ]  # fmt: skip
    workers = [
        [
            worker.name, worker.model, worker.device, f"{worker.running:,}", f"{worker.waiting:,}",
            f"{worker.kv_usage:.0%}", f"{worker.finished:,}", f"{worker.output_tokens:,}", age(now - worker.beat_at),
        ]
        for queue in overview.queues
        for worker in queue.workers
    ]  # fmt: skip
    dead = [
        [age(now - job.at), job.model, job.code, f"{job.attempts:,}", job.job or "-", job.reason]
        for job in overview.dead
    ]
    tables = {"queues": queues, "workers": workers, "dead": dead}
    return {name: [[printable(cell) for cell in row] for row in rows] for name, rows in tables.items()}


def age(seconds: float | None) -> str:
    """One number and its unit; "-" for None."""
    if seconds is None:
        return "-"
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def printable(text: str) -> str:
    """`text` in one line, with what could steer a terminal, or turn its direction, replaced."""
    return "".join(c if c.isprintable() else _REPLACEMENT for c in " ".join(text.split()))
