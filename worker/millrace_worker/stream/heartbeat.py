"""The heartbeat: a thread that renews this worker's leases and says that it is alive, as long as it really is.

A thread with its own connection, because the event loop may be busy for a while; and a watchdog the other way round,
because a worker whose loop or engine has stopped must lose its jobs to another.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import redis
import structlog

from millrace_schemas import GROUP, MODELS, Lane, ModelInfo, QueueKeys, WorkerInfo, encode

from .connection import Backoff, connect_sync, is_transient
from .lease import Lease, LeaseTable
from .scripts import BEAT, Call, run_sync

log = structlog.get_logger(__name__)

#: Leases renewed by one call of the script: each costs the server about 10 µs.
_CHUNK = 500
_REGISTER_EVERY = 10.0
_INFO_EVERY = 1.0


class Watchdog:
    """When the loop last ran and when a busy engine last spoke. Both in seconds of time.monotonic()."""

    def __init__(self, loop_limit: float, engine_limit: float):
        self._loop_limit = loop_limit
        self._engine_limit = engine_limit
        self._loop_at = time.monotonic()
        self._engine_at: float | None = None

    def loop_ran(self) -> None:
        self._loop_at = time.monotonic()

    def engine_spoke(self, at: float | None) -> None:
        """When an engine that has work last said something; None: it has no work, or is being started."""
        self._engine_at = at

    def stall(self) -> str | None:
        """What has stopped, if anything."""
        now = time.monotonic()
        if now - self._loop_at > self._loop_limit:
            return f"the front's loop has not run for {now - self._loop_at:.1f} s"
        engine_at = self._engine_at
        if engine_at is not None and now - engine_at > self._engine_limit:
            return f"the engine has work and said nothing for {now - engine_at:.1f} s"
        return None


@dataclass(frozen=True, slots=True)
class Report:
    """What a beat found, for the loop."""

    lost: list[Lease] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    #: Redis time minus this machine's clock, in seconds.
    clock_offset: float = 0.0
    #: Redis was away and is back.
    outage: bool = False


class Heartbeat:
    """Beats from `start` until `stop`. `report` is called in the loop, `info` in the thread."""

    def __init__(
        self,
        url: str,
        keys: QueueKeys,
        name: str,
        leases: LeaseTable,
        watchdog: Watchdog,
        *,
        lease: float,
        model_ttl: float,
        model: ModelInfo,
        info: Callable[[], WorkerInfo],
        report: Callable[[Report], None],
    ):
        self._client = connect_sync(url)
        self._keys = keys
        self._name = name
        self._leases = leases
        self._watchdog = watchdog
        self._lease = lease
        self._model_ttl = model_ttl
        self._model = model
        self._info = info
        self._report = report
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._renew_at = self._info_at = self._register_at = 0.0
        self._offset = 0.0
        self._registered = threading.Event()

    def start(self) -> None:
        """Call from the loop that takes the reports."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def wait_registered(self, seconds: float) -> bool:
        """Whether by then producers can find the model."""
        return self._registered.wait(seconds)

    def stop(self) -> None:
        """Ends the thread and removes the worker's notice; blocks for at most a few seconds."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def _run(self) -> None:
        backoff = Backoff(0.05, min(1.0, self._lease / 6))
        away = stalled = False
        while not self._stop.is_set():
            stall = self._watchdog.stall()
            if stall and not stalled:
                log.error("heartbeat stops: this worker is stuck, others may take its jobs", reason=stall)
            stalled = stall is not None
            try:
                if not stalled:
                    self._beat(outage=away)
                    away = False
                    backoff.reset()
                pause = min(_INFO_EVERY, self._lease / 3) / 2
            except (redis.RedisError, OSError) as e:
                if not away:
                    log.warning("heartbeat cannot reach Redis", error=str(e))
                away = away or is_transient(e)
                # The next beat that gets through renews everything at once.
                self._renew_at = self._info_at = 0.0
                pause = backoff.next()
            except Exception:
                # This thread must outlive anything: without it every job here would be run again elsewhere.
                log.exception("a beat failed")
                pause = backoff.next()
            self._stop.wait(pause)
        self._farewell()

    def _beat(self, *, outage: bool) -> None:
        now = time.monotonic()
        if now >= self._renew_at:
            report = self._renew(self._leases.all(), outage)
            self._renew_at = now + self._lease / 3
            self._send(report)
        if now >= self._info_at:
            self._tell()
            self._info_at = now + min(_INFO_EVERY, self._lease / 3)
        if now >= self._register_at:
            self._register()
            self._register_at = now + min(_REGISTER_EVERY, self._model_ttl / 3)

    def _renew(self, leases: Sequence[Lease], outage: bool) -> Report:
        lanes = {lane: index for index, lane in enumerate(Lane, start=1)}
        streams = tuple(self._keys.lanes[lane] for lane in lanes)
        held = {lease.job_id: lease for lease in leases}
        lost: list[Lease] = []
        cancelled: list[str] = []
        for start in range(0, max(1, len(leases)), _CHUNK):
            args: list[str | int] = [GROUP, self._name, self._keys.prefix]
            for lease in leases[start : start + _CHUNK]:
                args += (lanes[lease.lane], lease.entry, lease.job_id, lease.attempt)
            asked_at = time.time()
            now, gone, asked = run_sync(self._client, Call(BEAT, streams, args))
            # Redis looked at its clock somewhere in between.
            self._offset = float(now) - (asked_at + time.time()) / 2
            lost += (held[job.decode()] for job in gone)
            cancelled += (job.decode() for job in asked)
        return Report(lost, cancelled, self._offset, outage)

    def _send(self, report: Report) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._report, report)
        except RuntimeError:
            # The loop closed between our check and now: nobody is left to tell.
            self._stop.set()

    def _tell(self) -> None:
        info = self._info()
        # Three missed notices, and never less than a lease: a notice that flickers would look like a dead worker.
        keep = max(int(self._lease * 1000), 3000)
        self._client.set(self._keys.worker(self._name), encode(info), px=keep)
        self._client.zadd(self._keys.workers, {self._name: time.time() + self._offset})

    def _register(self) -> None:
        self._client.set(self._keys.model, encode(self._model), px=int(self._model_ttl * 1000))
        self._client.zadd(MODELS, {self._model.name: time.time() + self._offset + self._model_ttl})
        self._registered.set()

    def _farewell(self) -> None:
        try:
            self._client.delete(self._keys.worker(self._name))
            self._client.zrem(self._keys.workers, self._name)
            self._client.close()
        except (redis.RedisError, OSError) as e:
            log.info("could not remove the worker's notice; it expires by itself", error=str(e))
