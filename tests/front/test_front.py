"""The front's loop against a queue that answers when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from front_parts import READY, TOOLS, leased_job, request_of
from millrace_schemas import Lane
from millrace_worker.front.front import Front, QueueSide
from millrace_worker.front.outcome import Signature
from millrace_worker.front.running import Running
from millrace_worker.stream.closing import GiveBack
from millrace_worker.stream.heartbeat import Watchdog
from millrace_worker.stream.lease import LeasedJob, LeaseTable


class Desk:
    """Stands for consumer, reclaimer, publisher and engine."""

    due = False

    def __init__(self) -> None:
        self.leases = LeaseTable()
        self.asked = asyncio.Event()
        self.woken = asyncio.Event()
        self.given_back: list[str] = []
        self.begun: list[str] = []
        self.front: Front

    def hand_out(self, name: str, lane: Lane = Lane.INTERACTIVE) -> None:
        job: LeasedJob = leased_job(request_of(), name=name, lane=lane)
        self.leases.add(job.lease)
        self.front.take(job)

    async def next(self, room: Any, *, wait: bool) -> int:
        self.asked.set()
        await self.woken.wait()
        # Redis had delivered one before it was told to end the read.
        await asyncio.sleep(0.05)
        self.hand_out("late")
        return 1

    async def wake(self) -> None:
        self.woken.set()

    async def start(self) -> Any:
        return READY

    async def run(self) -> Any:
        await asyncio.Event().wait()

    async def give_back(self, back: GiveBack) -> bool:
        self.given_back.append(back.lease.job_id)
        return True

    def follow(self, progress: Any) -> None:
        self.begun.append(progress.lease.job_id)

    def add(self, sequence: Any) -> None: ...


def with_front(body: Callable[[Front, Desk], Awaitable[None]]) -> None:
    async def run() -> None:
        desk: Any = Desk()
        signature = Signature("letters", "w1")
        running = Running(desk, desk.leases, signature, 3)
        queue = QueueSide(desk, desk, desk, desk.leases)
        front = Front(queue, running, TOOLS, signature, Watchdog(10.0, 10.0), lambda on_step, busy: desk)
        desk.front = front
        await front.start_engine()
        await body(front, desk)

    asyncio.run(run())


def test_a_job_that_was_being_read_when_a_drain_began_is_given_back() -> None:
    async def body(front: Front, desk: Desk) -> None:
        serving = asyncio.create_task(front.serve())
        await desk.asked.wait()
        await front.stop_reading()
        assert await front.wait_settled(5.0)
        assert desk.given_back == ["late"]
        assert desk.begun == []
        serving.cancel()

    with_front(body)


def test_an_interactive_job_is_prepared_before_the_batch_jobs_of_a_read() -> None:
    async def body(front: Front, desk: Desk) -> None:
        for n in range(8):
            desk.hand_out(f"batch{n}", Lane.BATCH)
        desk.hand_out("urgent")
        assert await front.wait_settled(0) is False
        while len(desk.begun) < 9:
            await asyncio.sleep(0)
        assert desk.begun == ["urgent", *(f"batch{n}" for n in range(8))]

    with_front(body)
