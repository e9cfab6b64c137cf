"""An overview in words: the cells of its tables, the same on the page and in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from millrace_schemas import WorkerInfo
from millrace_schemas.batch import BatchStatus

from .bulk.glance import Glance
from .overview import Overview, Throughput

#: Headings of the columns, by table.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "queues": ("model", "lane", "waiting", "in flight", "oldest", "delayed", "dead"),
    "workers": (
        "worker", "model", "device", "running", "waiting", "KV", "hits", "finished", "tokens", "tok/s", "beat",
    ),
    "batches": ("batch", "file", "status", "progress", "lines", "failed", "lines/s", "left", "tokens/s"),
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
) | {"attempts", "lines", "failed", "lines/s", "left", "tokens/s"}

#: Of the prefix cache, from the fastest.
_TIERS = ("gpu", "cpu", "disk", "s3")
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
    batches = [_batch(batch) for batch in overview.bulk.batches]
    tables = {"queues": queues, "workers": workers, "batches": batches, "failures": failures}
    return {name: [[printable(cell) for cell in row] for row in rows] for name, rows in tables.items()}


def sharing_of(workers: Iterable[WorkerInfo]) -> str:
    """What these workers have not computed, and not read, more than once; "" before their first prompt."""
    workers = list(workers)
    prompts, steps = sum(worker.prompt_tokens for worker in workers), sum(worker.steps for worker in workers)
    if not prompts:
        return ""
    cached = sum(worker.cached_tokens for worker in workers) / prompts
    # Workers that are older than this count say nothing of their steps.
    grouped = sum(worker.shared_steps for worker in workers) / steps if steps else None
    words = f"{cached:.0%} of prompt tokens came from the prefix cache"
    return words if grouped is None else f"{words}, {grouped:.0%} of steps were grouped"


def tiers_of(workers: Iterable[WorkerInfo]) -> str:
    """What of these workers' prompts each tier of the cache had; "" where only the first one had anything."""
    workers = list(workers)
    hits = {tier: sum(worker.cached_by_tier.get(tier, 0) for worker in workers) for tier in _TIERS}
    if not any(hits[tier] for tier in _TIERS[1:]):
        return ""
    prompts = sum(worker.prompt_tokens for worker in workers)
    return "by tier: " + ", ".join(f"{tier} {tokens / prompts:.1%}" for tier, tokens in hits.items() if tokens)


def closed_of(workers: Iterable[WorkerInfo]) -> str:
    """Which tiers of the cache these workers were told to have and cannot use; "" where that is none."""
    closed = [f"{tier} of {worker.name}" for worker in workers for tier in worker.closed_tiers]
    return f"cache tiers that are not open: {', '.join(closed)}" if closed else ""


def _worker(worker: WorkerInfo, now: float, rate: float | None) -> list[str]:
    hits = f"{worker.cached_tokens / worker.prompt_tokens:.0%}" if worker.prompt_tokens else "-"
    return [
        worker.name, worker.model, worker.device, f"{worker.running:,}", f"{worker.waiting:,}",
        f"{worker.kv_usage:.0%}", hits, f"{worker.finished:,}", f"{worker.output_tokens:,}",
        "-" if rate is None else f"{rate:,.0f}", age(now - worker.beat_at),
    ]  # fmt: skip


def _batch(batch: Glance) -> list[str]:
    lines = f"{batch.ended:,}/{batch.total:,}" if batch.total else "-"
    rate = "-" if batch.rate is None else per_second(batch.rate)
    left = age(batch.eta) if batch.ended_at is None else f"{age(batch.at - batch.ended_at)} ago"
    return [
        batch.id, batch.file, batch.status.replace("_", " "), percent(share_of(batch)), lines, f"{batch.failed:,}",
        rate, left, f"{batch.token_rate:,.0f}" if batch.token_rate else "-",
    ]  # fmt: skip


def share_of(batch: Glance) -> float:
    """Of whatever is done at the moment: of the input while it is validated, then of the lines."""
    return batch.checked if batch.status is BatchStatus.VALIDATING else batch.share


def trouble_of(batch: Glance) -> str:
    """What holds a batch up, or made it fail; "": nothing does."""
    if batch.problem is not None:
        return printable(f"waiting: {batch.problem}")
    return printable(batch.error or "")


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


def per_second(rate: float) -> str:
    """With two digits at least, so that what is slow does not look as if it stood still."""
    return f"{rate:,.0f}" if rate >= 10 or rate == 0 else f"{rate:.2g}"


def printable(text: str) -> str:
    """`text` in one line, with what could steer a terminal, or turn its direction, replaced."""
    return "".join(c if c.isprintable() else _REPLACEMENT for c in " ".join(text.split()))
