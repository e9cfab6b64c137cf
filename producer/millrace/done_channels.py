"""The channels on which jobs' ends are told, on one connection from its begin to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from millrace_schemas import QueueKeys, queue_of_job
from millrace_schemas.aio import end_tasks

from .wire import Wire

#: Channels named in one command.
_BATCH = 256


class DoneChannels:
    """Subscribes to the channels of the jobs that are added. `on_job` gets the id of each job whose subscription is
    confirmed, and of each that ends.
    """

    def __init__(self, wire: Wire, on_job: Callable[[str], None]):
        #: Whether the server said anything on it.
        self.heard = False
        self._wire = wire
        self._on_job = on_job
        self._subscribed: dict[str, bytes] = {}
        self._jobs: dict[bytes, str] = {}
        self._new: dict[str, None] = {}
        self._gone: dict[str, None] = {}
        self._changed = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    def add(self, job_id: str) -> None:
        self._gone.pop(job_id, None)
        if job_id not in self._subscribed:
            self._new[job_id] = None
            self._changed.set()

    def discard(self, job_id: str) -> None:
        """Its channel is given up with the next one that comes, or the next pause."""
        self._new.pop(job_id, None)
        if job_id in self._subscribed:
            self._gone[job_id] = None

    async def follow(self, seconds: float) -> None:
        """Keeps the subscription as it should be for so long, or until it changes.

        Raises redis.RedisError, OSError.
        """
        try:
            async with asyncio.timeout(max(seconds, 0)):
                await self._changed.wait()
        except TimeoutError:
            # What has gone is looked at all the same.
            pass
        self._changed.clear()
        if self._reading is not None and self._reading.done():
            self._reading.result()
        await self._subscribe()
        await self._unsubscribe()
        if self._reading is None and self._subscribed:
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(lambda task: self._changed.set())

    async def close(self) -> None:
        if self._reading is not None:
            await end_tasks(self._reading)
        await self._wire.close()

    async def _subscribe(self) -> None:
        while batch := _first(self._new):
            channels = []
            for job_id in batch:
                channel = QueueKeys(queue_of_job(job_id)).done(job_id).encode()
                self._subscribed[job_id] = channel
                self._jobs[channel] = job_id
                channels.append(channel)
            await self._wire.send([("SUBSCRIBE", *channels)])

    async def _unsubscribe(self) -> None:
        while batch := _first(self._gone):
            channels = [self._subscribed.pop(job_id) for job_id in batch]
            for channel in channels:
                del self._jobs[channel]
            await self._wire.send([("UNSUBSCRIBE", *channels)])

    async def _read(self) -> None:
        """Until the connection breaks."""
        while True:
            message: Any = await self._wire.read()
            if isinstance(message, Exception):
                raise message
            self.heard = True
            kind, channel, _ = message
            job_id = self._jobs.get(channel)
            if job_id is not None and kind in (b"subscribe", b"message"):
                self._on_job(job_id)


def _first(jobs: dict[str, None]) -> list[str]:
    """Takes out so many as go into one command."""
    batch = [job_id for job_id, _ in zip(jobs, range(_BATCH), strict=False)]
    for job_id in batch:
        del jobs[job_id]
    return batch
