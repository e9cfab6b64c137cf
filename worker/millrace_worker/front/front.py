"""The front's loop: leases jobs as the engine has room, prepares them, and keeps an engine running."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import redis
import redis.asyncio
import structlog

from millrace_schemas import Lane
from millrace_schemas.aio import end_tasks
from millrace_worker.errors import EngineDied
from millrace_worker.frames import Ready, StepOutput
from millrace_worker.stream.closing import Ending, GiveBack
from millrace_worker.stream.connection import Backoff
from millrace_worker.stream.consumer import JobConsumer
from millrace_worker.stream.heartbeat import Report, Watchdog
from millrace_worker.stream.lease import LeasedJob, LeaseTable
from millrace_worker.stream.publisher import Publisher
from millrace_worker.stream.reclaim import Reclaimer
from millrace_worker.stream.room import Room

from .batch_turns import BatchTurns
from .engine_link import EngineLink
from .job import Job
from .outcome import Signature
from .pin_keeper import PinKeeper
from .preparation import Preparation
from .running import Running
from .text import TextTools

log = structlog.get_logger(__name__)

#: Restarts in a row that fail before the worker gives up, hands its jobs over and exits.
_START_TRIES = 5
_ALIVE_EVERY = 0.2
#: Seconds between two tries to end the read that a drain waits for, and for all of them.
_READ_ENDS_EVERY, _READ_ENDS = 0.05, 5.0
#: An engine that lived this long, in seconds, did not die of how it was started.
_HEALTHY = 60.0

#: Makes the link to a new engine, given its frames' receiver and whether it has work.
NewLink = Callable[[Callable[[StepOutput], None], Callable[[], bool]], EngineLink]


@dataclass(frozen=True, slots=True)
class QueueSide:
    """The parts of the stream half that a front works with."""

    consumer: JobConsumer
    reclaimer: Reclaimer
    publisher: Publisher
    leases: LeaseTable
    pins: PinKeeper


class Front:
    """Joins queue and engine. `take` gets every leased job.

    `start_engine`, then `serve` and, once jobs may come, `open`;
    to end, `stop_reading`, `wait_settled`, what `running.hand_over` does, `stop_engine`.
    """

    def __init__(
        self,
        queue: QueueSide,
        running: Running,
        tools: TextTools,
        signature: Signature,
        watchdog: Watchdog,
        new_link: NewLink,
    ):
        self._queue = queue
        self.running = running
        self._preparation = Preparation(tools, signature, running.now, queue.pins.pin)
        self._watchdog = watchdog
        self._new_link = new_link
        self._link: EngineLink | None = None
        self._ready: Ready | None = None
        self._serving = False
        self._reading = True
        self._open = False
        #: Set while no read is under way.
        self._at_rest = asyncio.Event()
        self._at_rest.set()
        self._batch = BatchTurns(self._prepare, running.spawn)
        self._stopping = False
        #: Why the worker has to give up, once it has.
        self.failure: EngineDied | None = None

    @property
    def ready(self) -> Ready | None:
        """What the engine said at its start; None while there is none, or it is not open yet."""
        return self._ready if self._serving and self._open else None

    @property
    def engine_pid(self) -> int | None:
        return self._link.pid if self._link else None

    async def start_engine(self) -> Ready:
        """Raises EngineStartFailed and EngineDied."""
        self._link = self._new_link(self.running.on_step, lambda: self.running.jobs.engine_busy)
        self._ready = await self._link.start()
        self._serving = True
        self.running.engine_serves(self._link, self._ready)
        return self._ready

    def open(self) -> None:
        """From now on jobs are read."""
        self._open = True
        self.running.room.set()

    async def serve(self) -> None:
        """Runs until cancelled, or until no engine can be kept: then `failure` says why."""
        tasks = [asyncio.create_task(work()) for work in (self._read_loop, self._alive_loop, self._engine_loop)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await end_tasks(*tasks)

    async def stop_reading(self) -> None:
        """No job is begun from now on; what a read brought that was under way is held, and is given back."""
        self._reading = False
        self._preparation.stop()
        limit = time.monotonic() + _READ_ENDS
        while not self._at_rest.is_set() and time.monotonic() < limit:
            # More than once: one that comes just before the read blocks does nothing.
            await self.wake_reader()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._at_rest.wait(), _READ_ENDS_EVERY)

    async def wait_settled(self, timeout: float) -> bool:
        """True once no job is held, False after `timeout` seconds."""
        limit = time.monotonic() + timeout
        while self.running.held:
            if time.monotonic() >= limit:
                return False
            await asyncio.sleep(0.02)
        return True

    async def stop_engine(self) -> None:
        self._stopping = True
        self._serving = False
        if self._link is not None:
            await self._link.stop()

    def on_report(self, report: Report) -> None:
        """What the heartbeat found."""
        self.running.clock_offset = report.clock_offset
        if report.outage:
            self._queue.reclaimer.outage()
        for lease in report.lost:
            self.running.lost(lease)
        for job_id in report.cancelled:
            self.running.cancel(job_id)

    def on_hand_over(self) -> None:
        """Another worker has handed jobs over."""
        self._queue.reclaimer.hand_over_seen()
        self.running.spawn(self.wake_reader())

    async def wake_reader(self) -> None:
        try:
            await self._queue.consumer.wake()
        except (redis.RedisError, OSError) as e:
            log.debug("could not end a blocking read; it ends by itself", error=str(e))

    async def _read_loop(self) -> None:
        backoff = Backoff(0.05, 2.0)
        while True:
            room = self._room()
            if not room:
                await self._wait_for_room()
                continue
            self._at_rest.clear()
            try:
                await self._read(room)
                backoff.reset()
            except (redis.RedisError, OSError) as e:
                log.warning("cannot read the queue; trying again", error=str(e))
                self._queue.reclaimer.outage()
                self._at_rest.set()
                await backoff.sleep()
            finally:
                self._at_rest.set()

    async def _read(self, room: Room) -> None:
        taken = await self._queue.reclaimer.claim(room) if self._queue.reclaimer.due else 0
        if not taken and self._reading:
            await self._queue.consumer.next(room, wait=True)

    def _room(self) -> Room:
        if not (self._reading and self._serving and self._open) or self._ready is None:
            return Room(0)
        return self.running.jobs.room(self._ready, self.running.load)

    async def _wait_for_room(self) -> None:
        self.running.room.clear()
        # Should nobody tell us, look again all the same.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.running.room.wait(), 0.5)

    def take(self, leased: LeasedJob) -> None:
        """A job that was just leased."""
        self._count(leased)
        previous = self.running.jobs.get(leased.lease.job_id)
        if previous is not None:
            # Leased anew under a newer attempt: the one that runs here has lost its lease.
            self.running.lost(previous.lease)
        self.running.jobs.prepares(leased.lease.lane, 1)
        if leased.lease.lane is not Lane.BATCH:
            self.running.spawn(self._prepare(leased))
        else:
            self._batch.add(leased)

    def _count(self, leased: LeasedJob) -> None:
        figures, lane = self.running.figures, leased.lease.lane
        figures.leased[lane] += 1
        if leased.lease.attempt > 1:
            figures.redelivered[lane] += 1
        else:
            figures.queue_time[lane].observe(max(0.0, leased.started_at - leased.created_at))

    async def _prepare(self, leased: LeasedJob) -> None:
        """Makes a leased job run; one that will not run here is put away beside the loop."""
        assert self._ready is not None
        found = await self._preparation.of(leased, self._ready)
        if not isinstance(found, Job):
            self.running.spawn(self._put_away(leased, found))
            return
        try:
            if leased.lease in self._queue.leases:
                self.running.begin(found)
        finally:
            self.running.jobs.prepares(leased.lease.lane, -1)

    async def _put_away(self, leased: LeasedJob, found: Ending | GiveBack) -> None:
        try:
            if isinstance(found, Ending):
                await self.running.finish(found)
            else:
                await self._queue.publisher.give_back(found)
        finally:
            self.running.jobs.prepares(leased.lease.lane, -1)

    async def _engine_loop(self) -> None:
        """Keeps an engine running; returns when none can be kept."""
        backoff = Backoff(0.2, 30.0)
        while True:
            assert self._link is not None
            began = time.monotonic()
            died = await self._link.run()
            self._serving = False
            if self._stopping:
                return
            log.error("the engine died; starting another", reason=str(died), jobs=len(self.running.jobs))
            self.running.engine_died(died)
            if time.monotonic() - began > _HEALTHY:
                backoff.reset()
            if not await self._restart(backoff):
                return

    async def _restart(self, backoff: Backoff) -> bool:
        for _ in range(_START_TRIES):
            await backoff.sleep()
            try:
                await self.start_engine()
            except EngineDied as e:
                self.failure = e
                log.error("the engine does not start", reason=str(e))
            else:
                self.failure = None
                return True
        return False

    async def _alive_loop(self) -> None:
        while True:
            self._watchdog.loop_ran()
            await asyncio.sleep(_ALIVE_EVERY)
