"""The front's loop against a queue that answers when the test says so."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fake_text import LetterTokenizer
from front_parts import READY, TOOLS, leased_job, request_of
from millrace_schemas import Lane, Request
from millrace_worker.frames import AddSequence
from millrace_worker.front import batch_turns
from millrace_worker.front.front import Front, QueueSide
from millrace_worker.front.outcome import Signature
from millrace_worker.front.running import Running
from millrace_worker.front.text import TextTools
from millrace_worker.stop import StopChecker
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
        #: Sequence ids, as many as come between two looks at everything else.
        self.frames: list[list[int]] = []
        self._filling = False
        #: While it is not set, nothing that was given back is written.
        self.hold: asyncio.Event | None = None
        #: A job that cannot be begun.
        self.odd = ""
        self.front: Front

    def hand_out(self, name: str, lane: Lane = Lane.INTERACTIVE, prompt: str | None = None) -> None:
        request = request_of() if prompt is None else Request(model="letters", prompt=prompt)
        job: LeasedJob = leased_job(request, name=name, lane=lane)
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

    async def pin(self, job: Any, ready: Any) -> None:
        raise AssertionError("no job here asks for a pin")

    async def give_back(self, back: GiveBack) -> bool:
        self.given_back.append(back.lease.job_id)
        if self.hold is not None:
            await self.hold.wait()
        return True

    def follow(self, progress: Any) -> None:
        if progress.lease.job_id == self.odd:
            raise ValueError(self.odd)
        self.begun.append(progress.lease.job_id)

    def add(self, sequence: AddSequence) -> None:
        if not self._filling:
            self.frames.append([])
            self._filling = True
            asyncio.get_running_loop().call_soon(self._send)
        self.frames[-1].append(sequence.seq_id)

    def _send(self) -> None:
        self._filling = False


class SlowTokenizer(LetterTokenizer):
    """Takes as long for a long text as the test wants."""

    def __init__(self) -> None:
        self.encoded: list[str] = []
        self.go_on = threading.Event()

    def encode(self, text: str) -> list[int]:
        self.encoded.append(text[:5].strip())
        if len(text) > 9000:
            assert self.go_on.wait(20)
        return [1, 2]


def with_front(body: Callable[[Front, Desk], Awaitable[None]], tools: TextTools = TOOLS) -> None:
    async def run() -> None:
        desk: Any = Desk()
        signature = Signature("letters", "w1")
        running = Running(desk, desk.leases, signature, 3)
        queue = QueueSide(desk, desk, desk, desk.leases, desk)
        front = Front(queue, running, tools, signature, Watchdog(10.0, 10.0), lambda on_step, busy: desk)
        desk.front = front
        await front.start_engine()
        front.open()
        async with asyncio.timeout(10):
            await body(front, desk)

    asyncio.run(run())


def long_text(name: str) -> str:
    return name.ljust(10_000)


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


def test_batch_jobs_that_are_prepared_in_one_turn_reach_the_engine_in_one_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch_turns, "TURN", 60.0)

    async def body(front: Front, desk: Desk) -> None:
        for n in range(8):
            desk.hand_out(f"batch{n}", Lane.BATCH)
        while len(desk.begun) < 8:
            await asyncio.sleep(0)
        assert [len(frame) for frame in desk.frames] == [8]

    with_front(body)


def test_an_interactive_job_waits_for_one_turn_of_batch_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_turns, "TURN", 0.0)

    async def body(front: Front, desk: Desk) -> None:
        for n in range(8):
            desk.hand_out(f"batch{n}", Lane.BATCH)
        while not desk.begun:
            await asyncio.sleep(0)
        desk.hand_out("urgent")
        while len(desk.begun) < 9:
            await asyncio.sleep(0)
        assert desk.begun.index("urgent") <= 2
        assert [name for name in desk.begun if name != "urgent"] == [f"batch{n}" for n in range(8)]

    with_front(body)


def test_batch_jobs_are_given_back_together() -> None:
    """A drain has no time for a round trip to Redis each."""

    async def body(front: Front, desk: Desk) -> None:
        desk.woken.set()
        await front.stop_reading()
        desk.hold = asyncio.Event()
        for n in range(8):
            desk.hand_out(f"batch{n}", Lane.BATCH)
        while len(desk.given_back) < 8:
            await asyncio.sleep(0)
        assert await front.wait_settled(0) is False
        desk.hold.set()
        assert await front.wait_settled(5.0)
        assert desk.begun == []

    with_front(body)


def test_a_batch_job_that_cannot_be_begun_does_not_keep_the_others() -> None:
    async def body(front: Front, desk: Desk) -> None:
        desk.odd = "batch0"
        for n in range(3):
            desk.hand_out(f"batch{n}", Lane.BATCH)
        while len(desk.begun) < 2:
            await asyncio.sleep(0)
        assert desk.begun == ["batch1", "batch2"]

    with_front(body)


def test_what_waits_when_a_drain_begins_is_given_back_unprepared() -> None:
    tokenizer = SlowTokenizer()

    async def body(front: Front, desk: Desk) -> None:
        desk.woken.set()
        for n in range(8):
            desk.hand_out(f"batch{n}", Lane.BATCH, "short")
        desk.hand_out("urgent", prompt="short")
        await front.stop_reading()
        assert await front.wait_settled(5.0)
        assert sorted(desk.given_back) == [*(f"batch{n}" for n in range(8)), "urgent"]
        assert tokenizer.encoded == []

    with_front(body, TextTools(tokenizer, StopChecker))


def test_short_batch_jobs_go_past_a_long_text() -> None:
    tokenizer = SlowTokenizer()

    async def body(front: Front, desk: Desk) -> None:
        try:
            for n in range(4):
                desk.hand_out(f"long{n}", Lane.BATCH, long_text(f"long{n}"))
            for n in range(4):
                desk.hand_out(f"short{n}", Lane.BATCH, f"{n}")
            while len(desk.begun) < 4 or len(tokenizer.encoded) < 6:
                await asyncio.sleep(0.01)
            assert desk.begun == [f"short{n}" for n in range(4)]
            assert sorted(tokenizer.encoded) == ["0", "1", "2", "3", "long0", "long1"], "two long ones at once"
        finally:
            tokenizer.go_on.set()
        while len(desk.begun) < 8:
            await asyncio.sleep(0.01)
        assert sorted(desk.begun[4:]) == [f"long{n}" for n in range(4)]
        assert {*tokenizer.encoded[-2:]} == {"long2", "long3"}

    with_front(body, TextTools(tokenizer, StopChecker))


@pytest.mark.parametrize("lane", list(Lane))
def test_a_drain_does_not_wait_for_a_long_text(lane: Lane) -> None:
    tokenizer = SlowTokenizer()

    async def body(front: Front, desk: Desk) -> None:
        try:
            desk.woken.set()
            for n in range(4):
                desk.hand_out(f"long{n}", lane, long_text(f"long{n}"))
            while not tokenizer.encoded:
                await asyncio.sleep(0.01)
            await front.stop_reading()
            assert await front.wait_settled(5.0)
            assert sorted(desk.given_back) == [f"long{n}" for n in range(4)]
            assert desk.begun == []
        finally:
            tokenizer.go_on.set()

    with_front(body, TextTools(tokenizer, StopChecker))
