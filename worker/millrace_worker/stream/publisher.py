"""Writes what running jobs produce: checkpoints, events, results and hand-overs, one pipelined write at a time.

One writer, so that a job's last checkpoint never races its end. Every call is fenced by the lease and may be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import msgspec
import redis
import redis.asyncio
import structlog

from millrace_schemas import ErrorCode, ErrorInfo, JobState, QueueKeys, Result
from millrace_worker.config import StreamConfig

from .closing import Ending, GiveBack
from .connection import Backoff, is_transient
from .lease import Lease, LeaseTable
from .objects import ObjectStore, StoreFailed
from .progress import STREAM_INTERVAL, Progress
from .scripts import Call, run_many

log = structlog.get_logger(__name__)

#: Calls in one round trip: bounds the time that the server and our loop spend on one.
_ROUND = 256
#: Bytes after which a round takes no more calls: it has to be sent within the time that a socket waits.
_ROUND_BYTES = 8 * 2**20
#: A call that Redis refuses for a lasting reason is given up after this many tries.
_TRIES = 8
#: How often non-streaming jobs are looked at, in seconds.
_TICK = 0.25


class Publisher:
    """Give it endings and progress; `run` writes until `stop`.

    `on_lost` is told of leases that a write found lost, `on_ended` of jobs whose end is written.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        keys: QueueKeys,
        consumer: str,
        leases: LeaseTable,
        objects: ObjectStore,
        config: StreamConfig,
        on_lost: Callable[[Lease], None],
        on_ended: Callable[[Ending], None] = lambda ending: None,
    ):
        self._client = client
        self._keys = keys
        self._consumer = consumer
        self._leases = leases
        self._objects = objects
        self._config = config
        self._on_lost = on_lost
        self._on_ended = on_ended
        self._progress: dict[str, Progress] = {}
        self._closing: list[Ending | GiveBack] = []
        self._wake = asyncio.Event()
        self._stopping = False
        self._backoff = Backoff(0.05, 2.0)

    def follow(self, progress: Progress) -> None:
        """Checkpoints this job from now on, until it ends or `forget`."""
        self._progress[progress.lease.job_id] = progress

    def forget(self, progress: Progress) -> None:
        if self._progress.get(progress.lease.job_id) is progress:
            del self._progress[progress.lease.job_id]

    def poke(self) -> None:
        """There is something that should not wait for the next tick."""
        self._wake.set()

    async def finish(self, ending: Ending) -> bool:
        """Ends the job; True when its result is this one, False when the lease was lost and nothing changed.

        A result that the object store does not take sends the job back for another attempt, or fails it on its last.
        """
        if ending.result.state is JobState.COMPLETED:
            try:
                ending.result = await self._store(ending)
            except StoreFailed as e:
                if ending.lease.attempt < self._config.max_attempts and ending.progress is not None:
                    delay = self._config.retry_delay * 2 ** (ending.lease.attempt - 1)
                    await self.give_back(GiveBack(ending.lease, "retry", ending.progress, delay))
                    return False
                ending.result = _not_stored(ending.result, str(e))
        # Made here, for a round would make those of many jobs in one go. One that cannot be made fails there.
        with contextlib.suppress(Exception):
            ending.body()
        written = await self._close(ending)
        if written:
            self._on_ended(ending)
        return written

    async def give_back(self, back: GiveBack) -> bool:
        """Stores the job's tokens and gives it back; False when the lease was lost."""
        return await self._close(back)

    async def run(self) -> None:
        while not (self._stopping and not self._closing):
            streaming = any(p.stream for p in self._progress.values())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), STREAM_INTERVAL if streaming else _TICK)
            self._wake.clear()
            try:
                await self._round()
                self._backoff.reset()
            except (redis.RedisError, OSError) as e:
                log.warning("writing to Redis failed; trying again", error=str(e), closing=len(self._closing))
                self._wake.set()
                await self._backoff.sleep()

    def stop(self) -> None:
        """`run` returns once everything that is closing is closed."""
        self._stopping = True
        self._wake.set()

    async def _store(self, ending: Ending) -> Result:
        target = ending.result_to
        if target == "redis":
            limit = self._config.max_result_bytes
            if self._config.result_s3 is None or len(ending.body()) <= limit:
                return ending.result
            target = self._config.result_s3
        location = await self._objects.put(target, ending.result)
        return msgspec.structs.replace(ending.result, choices=(), location=location)

    async def _close(self, closing: Ending | GiveBack) -> bool:
        self._closing.append(closing)
        self._wake.set()
        return await closing.done

    async def _round(self) -> None:
        """One pipelined write of everything that is due."""
        writes, closing = self._due()
        if not writes and not closing:
            return
        calls, writes, closing = self._calls(writes, closing)
        replies = await run_many(self._client, calls)
        failed: list[Exception] = []
        for progress, reply in zip(writes, replies[: len(writes)], strict=True):
            if isinstance(reply, Exception):
                failed.append(reply)
                continue
            progress.confirm(int(reply))
            if progress.lost:
                self._lose(progress)
        for item, reply in zip(closing, replies[len(writes) :], strict=True):
            if isinstance(reply, Exception):
                failed.append(reply)
                self._refused(item, reply)
            else:
                self._closed(item, bool(reply))
        if self._closing:
            self._wake.set()
        if failed:
            raise failed[0]

    def _calls(
        self, writes: list[Progress], closing: list[Ending | GiveBack]
    ) -> tuple[list[Call], list[Progress], list[Ending | GiveBack]]:
        """The calls, as many as make a round, and what they are for.

        What cannot be written down loses its lease; its neighbours do not care.
        """
        ttl = max(1, int(self._config.result_ttl))
        calls: list[Call] = []
        sound: list[Progress] = []
        sound_closing: list[Ending | GiveBack] = []
        size = 0
        for progress in writes:
            if size > _ROUND_BYTES:
                break
            try:
                calls.append(progress.call(self._keys, self._consumer))
                sound.append(progress)
                size += _bytes(calls[-1])
            except Exception:
                log.exception("a checkpoint cannot be written", job=progress.lease.job_id)
                self._lose(progress)
        for item in closing:
            if size > _ROUND_BYTES:
                break
            try:
                calls.append(item.call(self._keys, self._consumer, ttl))
                sound_closing.append(item)
                size += _bytes(calls[-1])
            except Exception:
                log.exception("an ending cannot be written", job=item.lease.job_id)
                self._closed(item, written=False)
        return calls, sound, sound_closing

    def _lose(self, progress: Progress) -> None:
        progress.lost = True
        self.forget(progress)
        self._on_lost(progress.lease)

    def _due(self) -> tuple[list[Progress], list[Ending | GiveBack]]:
        now = time.monotonic()
        closing: list[Ending | GiveBack] = []
        writes: dict[str, Progress] = {}
        for item in self._closing[:_ROUND]:
            progress = item.progress
            must_save = isinstance(item, GiveBack) and progress is not None and progress.unsaved
            if progress is not None and not progress.lost and (progress.in_flight or must_save):
                writes[progress.lease.job_id] = progress
            else:
                closing.append(item)
        ending = {item.lease.job_id for item in self._closing}
        for job_id, progress in self._progress.items():
            if len(writes) + len(closing) >= _ROUND:
                break
            every_tokens, every_seconds = self._config.checkpoint_tokens, self._config.checkpoint_interval
            if job_id not in ending and progress.due(now, every_tokens, every_seconds):
                writes[job_id] = progress
        return list(writes.values()), closing

    def _refused(self, item: Ending | GiveBack, error: Exception) -> None:
        if is_transient(error):
            return
        item.tries += 1
        if item.tries >= _TRIES:
            log.error("Redis refuses to end a job; its lease runs out", job=item.lease.job_id, error=str(error))
            self._closed(item, written=False)

    def _closed(self, item: Ending | GiveBack, written: bool) -> None:
        self._closing.remove(item)
        if not written:
            log.warning(
                "lost the lease of a job; nothing is written", job=item.lease.job_id, attempt=item.lease.attempt
            )
        if item.progress is not None:
            self.forget(item.progress)
        self._leases.remove(item.lease)
        if not item.done.done():
            item.done.set_result(written)


def _bytes(call: Call) -> int:
    """About as many as it takes on the wire."""
    return sum(len(arg) for arg in call.args if isinstance(arg, bytes))


def _not_stored(result: Result, reason: str) -> Result:
    error = ErrorInfo(ErrorCode.RESULT_STORE_FAILED, reason)
    return msgspec.structs.replace(result, state=JobState.FAILED, choices=(), error=error)
