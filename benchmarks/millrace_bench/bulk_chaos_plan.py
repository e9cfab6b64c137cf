"""Which part dies when, and how: the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Blow(StrEnum):
    """What is done to whom. Killed is SIGKILL; paused is SIGSTOP for longer than the lease, then SIGCONT."""

    TURN_KILLED = "turn of a bulk file killed"
    TURN_PAUSED = "turn of a bulk file paused"
    RQ_KILLED = "RQ worker killed"
    SERVICE_KILLED = "bulk service killed"
    WORKER_KILLED = "worker killed"
    WORKER_PAUSED = "worker paused"
    ENGINE_KILLED = "engine killed"
    GATEWAY_KILLED = "gateway killed"
    REDIS_KILLED = "Redis killed"
    S3_KILLED = "S3 server killed"


@dataclass(frozen=True, slots=True)
class Planned:
    """`at`: seconds from the start. `share`, 0 to 1, chooses among several; `seconds` that Redis and S3 are away."""

    at: float
    blow: Blow
    share: float
    seconds: float


#: Longest time that Redis or the S3 server is away.
_LONGEST_AWAY = 2.0


def plan(seed: int, kills_per_minute: float, blows: tuple[Blow, ...] = tuple(Blow)) -> Iterator[Planned]:
    """Without an end. Every kind comes once before any comes again."""
    rng = random.Random(seed)
    mean = 60.0 / kills_per_minute
    at = 0.0
    while True:
        for blow in rng.sample(blows, len(blows)):
            at += rng.uniform(0.2 * mean, 1.8 * mean)
            yield Planned(at, blow, rng.random(), rng.uniform(0.0, _LONGEST_AWAY))
