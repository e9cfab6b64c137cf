"""What a batch left behind, beside what it should have."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import openai
import redis
from openai.types import Batch

from millrace_schemas import GROUP, QueueKeys
from millrace_schemas.batch import BATCH_TRANSITIONS, BatchStatus
from millrace_schemas.keys import BATCHES_DUE

from .bulk_chaos_engine import TOKENS
from .bulk_chaos_parts import Installation
from .bulk_chaos_worker import MODEL

#: Examples that a fault names.
_MOST = 5


@dataclass(frozen=True, slots=True)
class Evidence:
    """`broken`: names of lines that must stand in the error file; `statuses`: those that a poller saw, in order."""

    client: openai.OpenAI
    installation: Installation
    batch: Batch
    lines: int
    broken: set[str]
    statuses: list[str]


def find_faults(found: Evidence, settle: float) -> list[str]:
    """One line a fault; what is left has `settle` seconds to be put away."""
    return [*_of_record(found), *_of_files(found), *_of_leftovers(found, settle)]


def _of_record(found: Evidence) -> list[str]:
    batch, faults = found.batch, []
    if batch.status != "completed":
        faults.append(f"it ended as {batch.status}: {batch.errors}")
    counts = batch.request_counts
    assert counts is not None
    if (counts.total, counts.completed + counts.failed) != (found.lines, found.lines):
        faults.append(f"the record counts {counts} of {found.lines} lines")
    if getattr(batch, "problem", None):
        faults.append(f"it ended with a problem: {batch.problem}")  # type: ignore[attr-defined]
    for before, after in pairwise(found.statuses):
        # A poller may miss statuses, but not see them out of order.
        if after not in _reachable(before):
            faults.append(f"its status went from {before} to {after}")
    return faults


def _reachable(status: str) -> set[str]:
    reached: set[str] = set()
    ahead = [BatchStatus(status)]
    while ahead:
        for after in BATCH_TRANSITIONS[ahead.pop()].values():
            if after not in reached:
                reached.add(after)
                ahead.append(after)
    return reached


def _of_files(found: Evidence) -> list[str]:
    output, errors = (_lines(found.client, file) for file in (found.batch.output_file_id, found.batch.error_file_id))
    faults = []
    times = Counter(line["custom_id"] for line in (*output, *errors))
    twice = [name for name, count in times.items() if count > 1]
    missing = [f"line-{n}" for n in range(found.lines) if f"line-{n}" not in times]
    for names, what in ((twice, "more than once"), (missing, "nowhere")):
        if names:
            faults.append(f"{len(names)} lines stand {what}: {', '.join(names[:_MOST])}")
    if len(times) > found.lines:
        faults.append(f"there are {len(times) - found.lines} lines that nobody asked for")
    wrong = {line["custom_id"] for line in errors} ^ found.broken
    if wrong:
        faults.append(f"{len(wrong)} lines stand in the wrong file: {', '.join(sorted(wrong)[:_MOST])}")
    mixed = [line["custom_id"] for line in output if not _is_answer(line)]
    if mixed:
        faults.append(f"{len(mixed)} lines have the answer of another: {', '.join(mixed[:_MOST])}")
    counts, usage = found.batch.request_counts, found.batch.usage
    assert counts is not None
    assert usage is not None
    if (counts.completed, counts.failed) != (len(output), len(errors)):
        faults.append(f"the record counts {counts}, the files have {len(output)} and {len(errors)} lines")
    sums = [sum(line["response"]["body"]["usage"][name] for line in output) for name in _TOKENS]
    if sums != [usage.input_tokens, usage.output_tokens]:
        faults.append(f"the record counts {usage}, the lines have {sums}")
    return faults


_TOKENS = ("prompt_tokens", "completion_tokens")


def _lines(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if not file_id:
        return []
    return [json.loads(line) for line in client.files.content(file_id).content.splitlines()]


def _is_answer(line: dict[str, Any]) -> bool:
    """The end of the line's own prompt."""
    text: str = line["response"]["body"]["choices"][0]["message"]["content"]
    return text == line["custom_id"].removeprefix("line-").zfill(TOKENS)


def _of_leftovers(found: Evidence, settle: float) -> list[str]:
    limit = time.monotonic() + settle
    while (faults := list(_leftovers(found))) and time.monotonic() < limit:
        time.sleep(0.5)
    return faults


def _leftovers(found: Evidence) -> Iterable[str]:
    keys = QueueKeys(MODEL)
    with redis.Redis.from_url(found.installation.redis_url) as client:
        jobs = sorted(
            key.decode() for kind in ("job", "result", "tokens") for key in client.keys(f"{keys.prefix}{kind}:*")
        )
        if jobs:
            states = Counter(str(client.hget(key, "state")) for key in jobs if ":job:" in key)
            yield f"{len(jobs)} keys of jobs are left ({dict(states)}): {', '.join(jobs[:_MOST])}"
        for lane in keys.lanes.values():
            waiting, pending = client.xlen(lane), client.xpending(lane, GROUP)["pending"]
            if waiting or pending:
                yield f"{waiting} jobs are left in {lane}, {pending} of them leased"
        if due := client.zrange(BATCHES_DUE, 0, -1):
            yield f"somebody must still see to {due}"
    parts = [path for path in found.installation.buckets.rglob("*.parts/*") if path.is_file()]
    if parts:
        yield f"{len(parts)} parts are left: {', '.join(str(path.name) for path in parts[:_MOST])}"
