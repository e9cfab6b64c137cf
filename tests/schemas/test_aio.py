"""Tasks end, also those that lose a cancellation."""

from __future__ import annotations

import asyncio

import pytest

from millrace_schemas import aio


async def stubborn(times: int) -> None:
    """Goes on after `times` cancellations, as a task does whose wait_for lost them."""
    while True:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            if times == 0:
                raise
            times -= 1


async def failing() -> None:
    await asyncio.sleep(0)
    raise ValueError("told to nobody")


def test_a_lost_cancellation_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "_AGAIN", 0.01)

    async def run() -> None:
        tasks = [asyncio.create_task(work) for work in (stubborn(0), stubborn(3), failing())]
        await asyncio.sleep(0.01)
        async with asyncio.timeout(10):
            await aio.end_tasks(*tasks)
        assert [task.done() for task in tasks] == [True] * 3

    asyncio.run(run())


def test_nothing_to_end() -> None:
    asyncio.run(aio.end_tasks())


def test_work_ends_with_its_result_or_once_it_is_not_wanted() -> None:
    async def run() -> None:
        event = asyncio.Event()
        assert await aio.unless_set(event, asyncio.sleep(0, "done")) == "done"
        with pytest.raises(ValueError, match="told to nobody"):
            await aio.unless_set(event, failing())
        work = asyncio.create_task(stubborn(0))
        asyncio.get_running_loop().call_soon(event.set)
        async with asyncio.timeout(10):
            assert await aio.unless_set(event, work) is None
        assert work.cancelled()

    asyncio.run(run())
