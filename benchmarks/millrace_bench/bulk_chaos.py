"""`millrace bench chaos`: a bulk file over HTTP, while everything that works on it is killed or paused at random."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import openai
from openai.types import Batch

from millrace.bulk.settings import BulkSettings

from .bulk_chaos_check import Evidence, find_faults
from .bulk_chaos_engine import TOKENS
from .bulk_chaos_parts import Installation, Part
from .bulk_chaos_plan import Blow, Planned, plan
from .bulk_chaos_worker import MODEL

_JSON = dict[str, Any]
T = TypeVar("T")
_ENDED = ("completed", "failed", "expired", "cancelled")
_TICK, _POLL = 0.05, 0.2
#: System prompts of the file, in turn.
_SYSTEMS = 8
#: Every so many lines, one has a body that no worker would take.
_BROKEN_EVERY = 97
#: Seconds that what was paused or started again has to put away what is left.
_SETTLE = 30.0


@dataclass(frozen=True, slots=True)
class Load:
    """Leases in seconds; workers take `rows` jobs at once and need three steps of `step` seconds for each."""

    lines: int = 50_000
    seed: int = 1
    kills_per_minute: float = 20.0
    worker_lease: float = 2.0
    bulk_lease: float = 2.0
    rows: int = 64
    step: float = 0.02
    #: Of the file, each worked on by one process at a time: its lines are as long as that takes.
    shards: int = 3
    #: Seconds after which a batch that has not ended counts as stuck, beside what its lines need.
    patience: float = 600.0
    blows: tuple[Blow, ...] = tuple(Blow)
    #: None: until the batch has ended.
    most_kills: int | None = None


def run(load: Load) -> _JSON:
    """What was done and found; `faults` is empty when nothing was lost and nothing was repeated.

    Otherwise `evidence` names the directory with logs, the data of Redis and S3, and what was found. Raises
    RuntimeError when a part does not start.
    """
    directory = Path(tempfile.mkdtemp(prefix="millrace-chaos-"))
    installation = Installation(
        directory, worker_lease=load.worker_lease, bulk_lease=load.bulk_lease, rows=load.rows, step=load.step
    )
    faults: list[str] | None = None
    try:
        installation.start()
        found, faults = _run(installation, load)
    except openai.OpenAIError as e:
        raise RuntimeError(f"the gateway did not answer as it should: {e}; evidence: {directory}") from e
    finally:
        installation.stop()
        # What could not be looked at is kept, too.
        if faults == []:
            shutil.rmtree(directory, ignore_errors=True)
    return found | {"faults": faults, "evidence": str(directory) if faults else None}


def _run(installation: Installation, load: Load) -> tuple[_JSON, list[str]]:
    client = openai.OpenAI(base_url=f"{installation.http_url}/v1", api_key="none", timeout=20.0, max_retries=0)
    source = installation.directory / "in.jsonl"
    broken = write_file(source, load.lines, load.shards)
    file = _until(lambda: client.files.create(file=source, purpose="batch"))
    key = {"Idempotency-Key": f"chaos-{load.seed}"}
    batch = _until(
        lambda: client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", extra_headers=key
        )
    )
    began = time.monotonic()
    watch = Watch(client, batch.id)
    hammer = Hammer(installation, load)
    limit = began + load.patience + load.lines / 50
    with watch:
        while watch.status not in _ENDED and time.monotonic() < limit:
            hammer.tick()
            time.sleep(_TICK)
    seconds = time.monotonic() - began
    hammer.heal()
    evidence = Evidence(
        client, installation, _until(lambda: client.batches.retrieve(batch.id)), load.lines, broken, watch.seen
    )
    faults = [*watch.faults, *find_faults(evidence, _SETTLE)]
    counts = batch_counts(evidence.batch)
    found: _JSON = {
        "lines": load.lines, "seed": load.seed, "kills_per_minute": load.kills_per_minute, "seconds": round(seconds, 1),
        "status": evidence.batch.status, **counts, "blows": {str(blow): n for blow, n in hammer.done.items()},
        **ended_jobs(installation),
    }  # fmt: skip
    if faults:
        report = {**found, "faults": faults, "plan": hammer.history, "batch": evidence.batch.model_dump()}
        (installation.directory / "report.json").write_text(json.dumps(report, indent=1))
    return found, faults


def write_file(path: Path, lines: int, shards: int) -> set[str]:
    """A file whose prompts end in their own numbers; the names of the lines that cannot be run."""
    padding = "x" * int((shards - 1) * BulkSettings().shard_bytes * 1.1 / lines)
    systems = [f"You answer in style {n}. " * 4 for n in range(_SYSTEMS)]
    broken = set()
    with path.open("w") as file:
        for number in range(lines):
            body: _JSON = {
                "model": MODEL,
                "max_tokens": 64,
                # Of no use to a job.
                "user": padding,
                "messages": [
                    {"role": "system", "content": systems[number * 7 % _SYSTEMS]},
                    {"role": "user", "content": f"Question number {number:0{TOKENS}d}"},
                ],
            }
            if number % _BROKEN_EVERY == _BROKEN_EVERY // 2:
                body["temperature"] = -1
                broken.add(name_of(number))
            line = {"custom_id": name_of(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    return broken


def name_of(number: int) -> str:
    return f"line-{number}"


def batch_counts(batch: Batch) -> dict[str, int]:
    counts = batch.request_counts
    assert counts is not None
    return {"completed": counts.completed, "failed": counts.failed, "total": counts.total}


def ended_jobs(installation: Installation) -> _JSON:
    """Jobs that ended at a later attempt than their first, and those that ended again, made anew: by the workers' logs,
    in which the last moment before a kill is missing.
    """
    later, times = 0, Counter[bytes]()
    for worker in installation.workers:
        with worker.log.open("rb") as log:
            for line in log:
                if b'"event": "job ended"' in line:
                    later += b'"attempt": 1,' not in line
                    times[line.partition(b'"job": "')[2].partition(b'"')[0]] += 1
    return {"redeliveries": later, "ended_again": sum(count - 1 for count in times.values())}


class Watch:
    """Polls the batch as its owner would, in a thread, and notes what nobody should see."""

    def __init__(self, client: openai.OpenAI, batch_id: str):
        self._client, self._id = client, batch_id
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.status = ""
        self.seen: list[str] = []
        self.faults: list[str] = []

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        before = {"completed": 0, "failed": 0, "total": 0}
        while not self._stop.wait(_POLL):
            try:
                batch = self._client.batches.retrieve(self._id)
            except openai.APIStatusError as e:
                if e.status_code != 503 or "retry-after" not in e.response.headers:
                    self.faults.append(f"the gateway answered {e.status_code}: {e.message[:200]}")
                continue
            except openai.APIConnectionError:
                # It was killed; also what a time limit looks like.
                continue
            counts = batch_counts(batch)
            if any(counts[name] < before[name] for name in counts):
                self.faults.append(f"counts went back, from {before} to {counts}")
            before = counts
            if batch.status != self.status:
                self.seen.append(batch.status)
            self.status = batch.status


@dataclass(slots=True)
class Hammer:
    """Carries the plan out."""

    installation: Installation
    load: Load
    done: Counter[Blow] = field(default_factory=Counter)
    history: list[str] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)
    _plan: Iterator[Planned] = field(init=False)
    _next: Planned | None = field(init=False)
    #: What is to be done when, to end a blow.
    _later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        planned = plan(self.load.seed, self.load.kills_per_minute, self.load.blows)
        self._plan = itertools.islice(planned, self.load.most_kills)
        self._next = next(self._plan, None)

    def tick(self) -> None:
        """Does what is due."""
        now = time.monotonic()
        for entry in [entry for entry in self._later if entry[0] <= now]:
            self._later.remove(entry)
            entry[1]()
        if self._next is not None and now - self._began >= self._next.at:
            if self._strike(self._next):
                self.done[self._next.blow] += 1
                self.history.append(f"{now - self._began:.1f} s: {self._next}")
            self._next = next(self._plan, None)

    def heal(self) -> None:
        """Ends all blows."""
        later, self._later = self._later, []
        for _, undo in sorted(later, key=lambda entry: entry[0]):
            undo()

    def _strike(self, planned: Planned) -> bool:
        """False: there was nobody to be hit."""
        there, share = self.installation, planned.share
        match planned.blow:
            case Blow.TURN_KILLED:
                return self._kill(_one(there.turns(), share))
            case Blow.TURN_PAUSED:
                return self._pause(_one(there.turns(), share), self.load.bulk_lease)
            case Blow.RQ_KILLED:
                return self._kill(_one(there.rq_workers(), share))
            case Blow.ENGINE_KILLED:
                return self._kill(_one(there.engines(), share))
            case Blow.WORKER_PAUSED:
                worker = _one([worker for worker in there.workers if worker.is_alive], share)
                return self._pause(worker.pid if worker else None, self.load.worker_lease)
            case Blow.WORKER_KILLED:
                return self._replace(_one(there.workers, share), 0.0)
            case Blow.SERVICE_KILLED:
                return self._replace(_one(there.services, share), 0.0)
            case Blow.GATEWAY_KILLED:
                return self._replace(there.gateway, 0.0)
            case Blow.REDIS_KILLED:
                return self._replace(there.redis, planned.seconds)
            case Blow.S3_KILLED:
                return self._replace(there.s3, planned.seconds)

    def _kill(self, pid: int | None) -> bool:
        return pid is not None and _signal(pid, signal.SIGKILL)

    def _pause(self, pid: int | None, lease: float) -> bool:
        if pid is None or not _signal(pid, signal.SIGSTOP):
            return False
        self._later.append((time.monotonic() + lease * 1.5, lambda: _resume(pid)))
        return True

    def _replace(self, part: Part | None, seconds: float) -> bool:
        if part is None or not part.is_alive:
            return False
        part.kill()
        if seconds:
            self._later.append((time.monotonic() + seconds, lambda: self.installation.restart(part)))
        else:
            self.installation.restart(part)
        return True


def _one(found: list[T], share: float) -> T | None:
    return found[int(share * len(found))] if found else None


def _signal(pid: int, number: signal.Signals) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def _resume(pid: int) -> None:
    _signal(pid, signal.SIGCONT)


def _until(do: Callable[[], T]) -> T:
    """`do()`, again while its answer is lost, for a while."""
    limit = time.monotonic() + 60.0
    while True:
        try:
            return do()
        except openai.APIConnectionError:
            if time.monotonic() > limit:
                raise
        except openai.APIStatusError as e:
            if e.status_code != 503 or time.monotonic() > limit:
                raise
        time.sleep(0.2)
