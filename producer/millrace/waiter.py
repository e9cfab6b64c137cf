"""Waiting for results: one pub/sub connection for all jobs that a client waits for.

For each job: subscribe to its `done` channel, then look for the result, then wait. The look comes after the server
confirmed the subscription, so a job that ends in between is not missed. Channels can lose messages (a reconnect, a
failover), so all waited jobs are looked at again after a reconnect and every few seconds.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections.abc import Iterable
from typing import Any

from redis.asyncio import Redis
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

from .connection import TRANSIENT, Connection
from .errors import ClientClosed

#: Seconds after which a waited job is looked at without a message.
RECHECK = 5.0
#: Jobs looked at in one round trip, and channels named in one command.
_BATCH = 256
_RECONNECT_PAUSE = 0.1

_Futures = dict[str, set[asyncio.Future[Result]]]


class ResultWaiter:
    """Two tasks while anybody waits: one follows the channels, one looks results up, many at a time."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._waiting: _Futures = {}
        self._due: dict[str, None] = {}
        self._changed = asyncio.Event()
        self._look = asyncio.Event()
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
        self._changed.set()
        # At once, too: it may have ended long ago, or its channel may still be subscribed and will not be confirmed.
        self._due[job_id] = None
        self._look.set()
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
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._fail(ClientClosed("the client was closed while it waited; the job goes on"))

    def _leave(self, job_id: str, future: asyncio.Future[Result]) -> None:
        futures = self._waiting.get(job_id)
        if futures is not None:
            futures.discard(future)
            if not futures:
                # Its channel is given up with the next change or pause.
                del self._waiting[job_id]

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
            channels = _Channels(self._connection.blocking)
            try:
                await self._listen(channels)
                return
            except (RedisError, OSError) as e:
                if channels.heard:
                    lost_at = time.monotonic()
                if not isinstance(e, TRANSIENT) or time.monotonic() - lost_at > self._connection.retry_for:
                    raise self._connection.translate(e) from e
            finally:
                await channels.close()
            # Bounded retries, and the clear errors of a first command: wrong password, too old, not there.
            await self._connection.call(lambda redis: redis.ping())
            await asyncio.sleep(_RECONNECT_PAUSE)

    async def _listen(self, channels: _Channels) -> None:
        self._changed.set()
        while True:
            if self._changed.is_set() and self._waiting:
                self._changed.clear()
                await channels.subscribe_to(self._waiting)
            ids = await channels.next_ids(self._changed, RECHECK)
            if ids is None:
                if not self._waiting:
                    return
                ids = list(self._waiting)
                self._changed.set()
            self._due.update(dict.fromkeys(ids))
            if self._due:
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
        if not ids:
            return []

        async def read(redis: Redis) -> list[Any]:
            async with redis.pipeline(transaction=False) as pipe:
                for job_id in ids:
                    keys = QueueKeys(queue_of_job(job_id))
                    # State first: a job that ends between the two reads then shows its result.
                    pipe.hget(keys.job(job_id), "state")
                    pipe.get(keys.result(job_id))
                return list(await pipe.execute())

        replies = await self._connection.call(read)
        return [
            _judge(job_id, state, data) for job_id, state, data in zip(ids, replies[::2], replies[1::2], strict=True)
        ]


def _judge(job_id: str, state: bytes | None, data: bytes | None) -> Result | Exception | None:
    try:
        result = None if data is None else decode(data, Result)
    except DecodeError as e:
        return e
    return judge(job_id, None if state is None else state.decode(), result)


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


@functools.lru_cache(maxsize=16_384)
def _channel(job_id: str) -> str:
    return QueueKeys(queue_of_job(job_id)).done(job_id)


class _Channels:
    """One subscription connection, from its connect to its end."""

    def __init__(self, redis: Redis):
        self._pubsub = redis.pubsub()
        self._subscribed: dict[str, str] = {}
        self._reading: asyncio.Task[Any] | None = None
        #: Whether the server said anything on it.
        self.heard = False

    async def subscribe_to(self, wanted: Iterable[str]) -> None:
        """Makes the subscription that of the jobs in `wanted`, at least one."""
        channels = {_channel(job_id): job_id for job_id in wanted}
        new = [channel for channel in channels if channel not in self._subscribed]
        gone = [channel for channel in self._subscribed if channel not in channels]
        self._subscribed = channels
        for start in range(0, len(new), _BATCH):
            await self._pubsub.subscribe(*new[start : start + _BATCH])
        for start in range(0, len(gone), _BATCH):
            await self._pubsub.unsubscribe(*gone[start : start + _BATCH])

    async def next_ids(self, changed: asyncio.Event, timeout: float) -> list[str] | None:
        """Ids that a message names; [] once `changed` is set; None after `timeout` seconds of neither."""
        if self._reading is None and self._subscribed:
            # A read without timeout: one that is given up in the middle of a message would cost the connection.
            self._reading = asyncio.create_task(self._pubsub.get_message(timeout=None))
        change = asyncio.create_task(changed.wait())
        waiting: list[asyncio.Task[Any]] = [change] if self._reading is None else [change, self._reading]
        try:
            done, _ = await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            change.cancel()
        if not done:
            return None
        if self._reading is None or self._reading not in done:
            return []
        message, self._reading = self._reading.result(), None
        self.heard = True
        if message is None or message["type"] not in ("subscribe", "message"):
            return []
        job_id = self._subscribed.get(message["channel"].decode())
        return [] if job_id is None else [job_id]

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        await self._pubsub.aclose()  # type: ignore[no-untyped-call]
