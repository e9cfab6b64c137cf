"""Waiting for results: one connection that listens for all jobs that a client waits for.

For each job: subscribe to its `done` channel, then look for the result, then wait. The look comes after the server
confirmed the subscription, so a job that ends in between is not missed. Channels can lose messages (a reconnect, a
failover), so all waited jobs are looked at again after a reconnect and every few seconds. What a job that comes or goes
costs does not depend on how many others are waited for.
"""

from __future__ import annotations

import asyncio
import itertools
import time

from redis.exceptions import RedisError

from millrace_schemas import (
    TERMINAL,
    DecodeError,
    JobNotFound,
    QueueKeys,
    Result,
    ResultTimeout,
    decode,
    queue_of_job,
)
from millrace_schemas.aio import end_tasks

from .connection import TRANSIENT, Connection
from .done_channels import DoneChannels
from .errors import ClientClosed
from .wire import Command

#: Seconds after which waited jobs are looked at without a message.
RECHECK = 5.0
#: Jobs looked at in one round trip.
_BATCH = 256
_RECONNECT_PAUSE = 0.1

_Futures = dict[str, set[asyncio.Future[Result]]]


class ResultWaiter:
    """Two tasks while anybody waits: one follows the channels, one looks results up, many at a time."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._waiting: _Futures = {}
        self._due: dict[str, None] = {}
        self._look = asyncio.Event()
        self._channels: DoneChannels | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    async def wait(self, job_id: str, timeout: float | None) -> Result:
        """The job's terminal result, as stored. Raises ResultTimeout, JobNotFound, DecodeError, QueueUnavailable."""
        queue_of_job(job_id)
        if timeout is not None and timeout <= 0:
            found = (await self._lookup([job_id]))[0]
            if isinstance(found, Exception):
                raise found
            if found is None:
                raise timed_out(job_id, timeout)
            return found
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(job_id, set()).add(future)
        if self._channels is not None:
            self._channels.add(job_id)
        # At once, too: it may have ended long ago, or its channel may still be subscribed and will not be confirmed.
        self._is_due(job_id)
        try:
            self._start()
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            raise timed_out(job_id, timeout) from None
        finally:
            self._leave(job_id, future)

    async def close(self) -> None:
        self._closed = True
        tasks, self._tasks = self._tasks, []
        await end_tasks(*tasks)
        self._fail(ClientClosed("the client was closed while it waited; the job goes on"))

    def _leave(self, job_id: str, future: asyncio.Future[Result]) -> None:
        futures = self._waiting.get(job_id)
        if futures is not None:
            futures.discard(future)
            if not futures:
                del self._waiting[job_id]
                if self._channels is not None:
                    self._channels.discard(job_id)

    def _is_due(self, job_id: str) -> None:
        self._due[job_id] = None
        self._look.set()

    def _start(self) -> None:
        if self._closed:
            raise ClientClosed("the client is closed")
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._look_up())]
            for task in self._tasks:
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """No waiter may hang because a task of ours broke; and the next waiter starts both anew."""
        if task not in self._tasks:
            return
        tasks, self._tasks = self._tasks, []
        for other in tasks:
            other.cancel()
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail(error)
        elif self._waiting:
            self._start()

    def _fail(self, error: BaseException) -> None:
        for futures in self._waiting.values():
            for future in futures:
                if not future.done():
                    future.set_exception(error)

    async def _follow(self) -> None:
        """Keeps the subscription over reconnects; ends when nobody waits any more.

        Raises QueueUnavailable when Redis stays away for the connection's `retry_for`.
        """
        lost_at = time.monotonic()
        while True:
            channels = self._channels = DoneChannels(self._connection.wire(), self._is_due)
            try:
                await self._listen(channels)
                return
            except (RedisError, OSError) as e:
                if channels.heard:
                    lost_at = time.monotonic()
                if not isinstance(e, TRANSIENT) or time.monotonic() - lost_at > self._connection.retry_for:
                    raise self._connection.translate(e) from e
            finally:
                self._channels = None
                await channels.close()
            # Bounded retries, and the clear errors of a first command: wrong password, too old, not there.
            await self._connection.call(lambda redis: redis.ping())
            await asyncio.sleep(_RECONNECT_PAUSE)

    async def _listen(self, channels: DoneChannels) -> None:
        for job_id in self._waiting:
            channels.add(job_id)
        recheck_at = time.monotonic() + RECHECK
        while True:
            await channels.follow(recheck_at - time.monotonic())
            if time.monotonic() >= recheck_at:
                if not self._waiting:
                    return
                recheck_at = time.monotonic() + RECHECK
                self._due.update(dict.fromkeys(self._waiting))
                self._look.set()

    async def _look_up(self) -> None:
        while True:
            await self._look.wait()
            ids = list(itertools.islice(self._due, _BATCH))
            for job_id in ids:
                del self._due[job_id]
            if not self._due:
                self._look.clear()
            ids = [job_id for job_id in ids if job_id in self._waiting]
            for job_id, found in zip(ids, await self._lookup(ids), strict=True):
                if found is not None:
                    self._resolve(job_id, found)

    def _resolve(self, job_id: str, found: Result | Exception) -> None:
        for future in self._waiting.get(job_id, ()):
            if future.done():
                continue
            if isinstance(found, Exception):
                future.set_exception(found)
            else:
                future.set_result(found)

    async def _lookup(self, ids: list[str]) -> list[Result | Exception | None]:
        """For each id its result, why there will be none, or None: not yet."""
        found = await self._stored(ids)
        missing = [job_id for job_id in ids if found[job_id] is None]
        states = await self._connection.run(
            *(("HGET", QueueKeys(queue_of_job(job_id)).job(job_id), "state") for job_id in missing)
        )
        state_of = {
            job_id: None if state is None else state.decode() for job_id, state in zip(missing, states, strict=True)
        }
        # Those that ended between the two reads.
        found |= await self._stored([job_id for job_id, state in state_of.items() if state in TERMINAL])
        return [_judge(job_id, state_of.get(job_id), found[job_id]) for job_id in ids]

    async def _stored(self, ids: list[str]) -> dict[str, bytes | None]:
        """What is stored as their results, in one command a queue."""
        by_queue: dict[str, list[str]] = {}
        for job_id in ids:
            by_queue.setdefault(queue_of_job(job_id), []).append(job_id)
        commands: list[Command] = [
            ("MGET", *(QueueKeys(queue).result(job_id) for job_id in some)) for queue, some in by_queue.items()
        ]
        found: dict[str, bytes | None] = {}
        for some, replies in zip(by_queue.values(), await self._connection.run(*commands), strict=True):
            found.update(zip(some, replies, strict=True))
        return found


def _judge(job_id: str, state: str | None, data: bytes | None) -> Result | Exception | None:
    try:
        result = None if data is None else decode(data, Result)
    except DecodeError as e:
        return e
    return judge(job_id, state, result)


def judge(job_id: str, state: str | None, result: Result | None) -> Result | JobNotFound | None:
    """The job's result, why there will be none, or None: not yet."""
    if result is not None:
        return result
    if state is None:
        return JobNotFound(f"there is no job {job_id}, or its time to live is over")
    if state in TERMINAL:
        return JobNotFound(f"{job_id} has ended ({state}), but its result's time to live is over")
    return None


def timed_out(job_id: str, timeout: float | None) -> ResultTimeout:
    """What a wait of `timeout` seconds ends with; 0 looked once."""
    if timeout is None or timeout <= 0:
        return ResultTimeout(f"{job_id} has no result yet")
    return ResultTimeout(f"{job_id} has no result after {timeout:g} s; the job goes on")
