"""An overview in words: the cells of its tables, the same on the page and in the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from millrace_schemas import WorkerInfo

from .overview import Overview, Throughput

#: Headings of the columns, by table.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "queues": ("model", "lane", "waiting", "in flight", "oldest", "delayed", "dead"),
    "workers": (
        "worker", "model", "device", "running", "waiting", "KV", "hits", "finished", "tokens", "tok/s", "beat",
    ),
    "failures": ("age", "model", "code", "attempts", "job", "reason"),
}  # fmt: skip
#: Columns of numbers, which are read down their right edge.
NUMBERS = frozenset(
    (
        "waiting",
        "in flight",
        "oldest",
        "delayed",
        "dead",
        "running",
        "KV",
        "hits",
        "finished",
        "tokens",
        "tok/s",
        "beat",
    )
) | {"attempts"}

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))
_REPLACEMENT = "\ufffd"


def rows_of(overview: Overview, throughput: Throughput) -> dict[str, list[list[str]]]:
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
    workers = [_worker(worker, now, throughput.of(worker)) for queue in overview.queues for worker in queue.workers]
    failures = [
        [age(now - failed.at), failed.model, failed.code, f"{failed.attempts:,}", failed.job or "-", failed.reason]
        for failed in overview.failures
    ]
    tables = {"queues": queues, "workers": workers, "failures": failures}
    return {name: [[printable(cell) for cell in row] for row in rows] for name, rows in tables.items()}


def _worker(worker: WorkerInfo, now: float, rate: float | None) -> list[str]:
    hits = f"{worker.cached_tokens / worker.prompt_tokens:.0%}" if worker.prompt_tokens else "-"
    return [
        worker.name, worker.model, worker.device, f"{worker.running:,}", f"{worker.waiting:,}",
        f"{worker.kv_usage:.0%}", hits, f"{worker.finished:,}", f"{worker.output_tokens:,}",
        "-" if rate is None else f"{rate:,.0f}", age(now - worker.beat_at),
    ]  # fmt: skip


def age(seconds: float | None) -> str:
    """One number and its unit; "-" for None."""
    if seconds is None:
        return "-"
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def percent(share: float) -> str:
    """Rounded down: all of it is only all of it."""
    return f"{int(share * 100)}%"


def lines_a_second(rate: float) -> str:
    if 0 < rate < 0.1:
        return f"{rate * 60:.1f} lines/min"
    return f"{rate:,.0f} lines/s" if rate >= 10 or rate == 0 else f"{rate:.1f} lines/s"


def printable(text: str) -> str:
    """`text` in one line, with what could steer a terminal, or turn its direction, replaced."""
    return "".join(c if c.isprintable() else _REPLACEMENT for c in " ".join(text.split()))
