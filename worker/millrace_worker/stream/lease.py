"""A leased job as Redis hands it over, and the table of the leases that this worker holds."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from enum import StrEnum

from millrace_schemas import Lane

#: Time to live of the record of a job that has not ended, in seconds.
LIVE_TTL = 7 * 86_400

#: Consumer that holds the entries of jobs handed over by a draining worker until somebody claims them.
HANDED_OVER = "handed-over"
#: Idle time in ms that a handed-over entry is given, and from which one is recognised: no outage lasts ten days.
HANDOVER_IDLE = 20 * 86_400_000
HANDOVER_LEAST_IDLE = 10 * 86_400_000


class Verdict(StrEnum):
    """What lease.lua found about a job. The caller runs it, or ends it as the verdict says."""

    RUN = "run"
    EXPIRED = "expired"
    EXHAUSTED = "exhausted"


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to end one job: valid while the job's hash names this consumer and this attempt."""

    job_id: str
    lane: Lane
    entry: str
    attempt: int


@dataclass(frozen=True, slots=True)
class LeasedJob:
    """A job just leased. Times are Redis time in Unix seconds."""

    lease: Lease
    verdict: Verdict
    request: bytes
    #: Tokens that earlier attempts generated, as `checkpoint.read_words` reads them.
    checkpoint: tuple[int, ...]
    stream: bool
    cancel_requested: bool
    created_at: float
    started_at: float
    leased_at: float


def number(value: bytes, otherwise: float) -> float:
    """A number in a job's record; `otherwise` when there is none, or none that is finite."""
    try:
        found = float(value)
    except ValueError:
        return otherwise
    return found if math.isfinite(found) else otherwise


class LeaseTable:
    """The leases held now. The loop adds and removes; the heartbeat's thread reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._leases: dict[str, Lease] = {}

    def add(self, lease: Lease) -> None:
        with self._lock:
            self._leases[lease.job_id] = lease

    def remove(self, lease: Lease) -> None:
        """Removes exactly this lease: a newer one of the same job stays."""
        with self._lock:
            if self._leases.get(lease.job_id) == lease:
                del self._leases[lease.job_id]

    def all(self) -> list[Lease]:
        with self._lock:
            return list(self._leases.values())

    def entries(self) -> set[tuple[Lane, str]]:
        with self._lock:
            return {(lease.lane, lease.entry) for lease in self._leases.values()}

    def __contains__(self, lease: Lease) -> bool:
        with self._lock:
            return self._leases.get(lease.job_id) == lease

    def __len__(self) -> int:
        with self._lock:
            return len(self._leases)
