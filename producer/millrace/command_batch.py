"""Commands of many callers in few round trips.

An idle batcher sends at the end of the loop's turn: callers that come together leave together, and one that comes alone
does not wait. While a few batches are under way, what comes waits for the first of them to come back.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from millrace_schemas import MillraceError
from millrace_schemas.aio import end_tasks

from .errors import ClientClosed
from .wire import Command

#: Batches under way before others wait.
_MOST_UNDER_WAY = 2
#: Commands, and bytes of them, that leave together.
_MOST_COMMANDS, _MOST_BYTES = 512, 4 * 1024 * 1024
#: Seconds after which a batch (of many bytes, or while Redis is away) holds up nobody else.
_SLOW = 0.25

_Waiting = tuple[Sequence[Command], int, asyncio.Future[list[Any]]]


class CommandBatcher:
    """`send` takes a batch's commands and returns their replies in order; what it raises, every caller gets."""

    def __init__(self, send: Callable[[list[Command]], Awaitable[list[Any]]]):
        self._send = send
        self._waiting: deque[_Waiting] = deque()
        self._under_way = 0
        self._scheduled = False
        self._batches: dict[asyncio.Task[None], list[_Waiting]] = {}
        self._closed = False

    async def run(self, commands: Sequence[Command], size: int = 0) -> list[Any]:
        """The replies to `commands`, which are about `size` bytes and stay together. A caller may leave: they run all
        the same once they were sent.
        """
        if self._closed:
            raise ClientClosed("the client is closed")
        if not commands:
            return []
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        self._waiting.append((commands, size, future))
        if not self._scheduled and self._under_way < _MOST_UNDER_WAY:
            self._scheduled = True
            loop.call_soon(self._launch)
        return await future

    async def close(self) -> None:
        """Callers that wait get ClientClosed."""
        self._closed = True
        batches = dict(self._batches)
        await end_tasks(*batches)
        # A task that was cancelled before it began has told nobody.
        for _, _, future in itertools.chain(*batches.values(), self._waiting):
            _fail(future, _closed())
        self._waiting.clear()

    def _launch(self) -> None:
        self._scheduled = False
        while not self._closed and self._under_way < _MOST_UNDER_WAY and (batch := self._take()):
            self._under_way += 1
            task = asyncio.create_task(self._run(batch))
            self._batches[task] = batch
            task.add_done_callback(self._batches.pop)

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        commands = size = 0
        while self._waiting:
            following = self._waiting[0]
            commands += len(following[0])
            size += following[1]
            if batch and (commands > _MOST_COMMANDS or size > _MOST_BYTES):
                break
            self._waiting.popleft()
            if not following[2].done():
                batch.append(following)
        return batch

    async def _run(self, batch: list[_Waiting]) -> None:
        counted = True

        def make_room() -> None:
            nonlocal counted
            if counted:
                counted = False
                self._under_way -= 1
                if self._waiting and not self._scheduled:
                    self._launch()

        slow = asyncio.get_running_loop().call_later(_SLOW, make_room)
        try:
            replies = await self._send([command for commands, _, _ in batch for command in commands])
        except BaseException as e:
            for _, _, future in batch:
                _fail(future, e if isinstance(e, Exception) else _closed())
            if not isinstance(e, MillraceError):
                raise
        else:
            start = 0
            for commands, _, future in batch:
                if not future.done():
                    future.set_result(replies[start : start + len(commands)])
                start += len(commands)
        finally:
            slow.cancel()
            make_room()


def _closed() -> ClientClosed:
    return ClientClosed("the client was closed")


def _fail(future: asyncio.Future[list[Any]], error: Exception) -> None:
    if not future.done():
        # One for each: whoever raises an error adds to its traceback.
        own = copy.copy(error)
        own.__cause__ = error.__cause__
        future.set_exception(own)
