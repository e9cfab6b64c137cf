"""What a worker tells the world about itself, with each heartbeat."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass, field

from millrace_schemas import WorkerInfo

from .frames import Ready
from .front.running import Running
from .stream.lease import LeaseTable


@dataclass(frozen=True, slots=True)
class Notice:
    """Makes it from the parts of a worker; the heartbeat's thread may call it."""

    name: str
    model: str
    running: Running
    leases: LeaseTable
    #: By this machine's clock, Unix seconds.
    started_at: float = field(default_factory=time.time)

    def info(self, ready: Ready | None) -> WorkerInfo:
        running, totals, load = self.running, self.running.totals, self.running.load_now
        return WorkerInfo(
            name=self.name,
            model=self.model,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=ready.device if ready else "",
            started_at=self.started_at + running.clock_offset,
            beat_at=time.time() + running.clock_offset,
            leased=len(self.leases),
            running=load.running,
            waiting=load.waiting,
            kv_usage=1 - load.free_blocks / load.total_blocks if load.total_blocks else 0.0,
            finished=totals.finished,
            output_tokens=totals.output_tokens,
            kv_allocated_slots=totals.allocated_slots,
            kv_used_slots=totals.used_slots,
            prompt_tokens=totals.prompt_tokens,
            cached_tokens=totals.cached_tokens,
            cached_by_tier=dict(totals.cached_by_tier),
            closed_tiers=[tier for tier, is_open in running.cache.now.open.items() if not is_open],
            steps=totals.steps,
            shared_steps=totals.shared_steps,
            latencies=totals.latencies(),
        )
