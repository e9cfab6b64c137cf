"""One turn of work on one batch: what is to be had of it is taken, moved on as far as time allows, and left.

While a batch is validated, and once all of its lines have ended, one process has all of it (`whole.py`). In between its
shards are worked on, each by one process (`pump.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from millrace.async_client import AsyncClient
from millrace.connection import Connection
from millrace.tracing import continued
from millrace_schemas import MillraceError
from millrace_schemas.batch import BATCH_TERMINAL, BatchError

from . import log
from .errors import InputChanged, LeaseLost, StorageError
from .jobs import BatchJobs
from .keeping import kept
from .pump import Pump
from .settings import BulkSettings
from .storage import Input, MissingInput, storage_of
from .store import BatchStore, Owned
from .whole import Whole

#: Turns that one RQ job may have while nobody else waits.
_LONG_TURN = 6
#: Seconds in which everybody who waits shall have had a turn: what they collect has to become durable.
_ROUND, _SHORTEST = 20.0, 0.5
#: Pauses until what a batch that has ended left behind is tried to be removed again: that is in nobody's way.
_TIDY_PAUSES = 12


class Turn:
    """How long this process may go on with one batch."""

    def __init__(self, seconds: float, waiting: Callable[[], int]):
        self._seconds, self._waiting = seconds, waiting
        self._last = time.monotonic() + seconds * _LONG_TURN
        self.end = time.monotonic() + self._length()

    def is_over(self) -> bool:
        """Whether somebody else should have the process; extends the turn when nobody waits for it."""
        now = time.monotonic()
        if now < self.end:
            return False
        if now >= self._last or self._waiting():
            return True
        self.end = now + self._length()
        return False

    def _length(self) -> float:
        return max(_SHORTEST, min(self._seconds, _ROUND / (self._waiting() + 1)))


class Step:
    """What an RQ job does; `waiting` tells how many turns of other batches wait for this process."""

    def __init__(
        self,
        connection: Connection,
        client: AsyncClient,
        settings: BulkSettings,
        waiting: Callable[[], int] = lambda: 0,
    ):
        self._connection, self._client, self._settings = connection, client, settings
        self._store = BatchStore(connection)
        self._whole = Whole(self._store, client, connection, settings)
        self._waiting = waiting

    async def run(self, batch_id: str) -> None:
        """One turn; nothing when others have all of the batch. Raises QueueUnavailable."""
        turn = Turn(self._settings.turn, self._waiting)
        while await self._go_on(batch_id, turn) and not turn.is_over():
            pass

    async def _go_on(self, batch_id: str, turn: Turn) -> bool:
        """Whether something of the batch came to its end, so that there may be more to do."""
        owned = await self._store.take(batch_id, self._settings.lease)
        if owned is None:
            return False
        log.batch_taken(owned.batch, owned.shard)
        again: float | None = self._settings.pause
        ended = False
        try:
            async with kept(self._store, owned, self._settings.lease):
                # Jobs of its lines belong to the trace of whoever made the batch.
                with continued(owned.batch.traceparent):
                    ended, again = await self._advance(owned, turn)
        except LeaseLost:
            log.shard_lost(owned.batch, owned.shard)
            return False
        except MillraceError as e:
            again = await self._wait(owned, str(e))
        except Exception as e:  # noqa: BLE001 - a fault of ours may pass; a batch that nobody sees to does not
            log.turn_failed(batch_id, e)
            # Its words may quote the file.
            again = await self._wait(owned, f"a turn broke off with {type(e).__name__}; the bulk worker's log has more")
        await self._store.leave(owned, again)
        return ended

    async def _advance(self, owned: Owned, turn: Turn) -> tuple[bool, float | None]:
        """Whether something came to its end, and the seconds until somebody must see to the rest; None: to nothing."""
        if owned.shard is not None:
            ended = await self._work(owned, turn)
            if ended:
                log.shard_ended(owned.batch, owned.shard)
            return ended, 0.0
        await self._whole.advance(owned)
        if owned.batch.status in BATCH_TERMINAL:
            return False, None
        return True, 0.0

    async def _wait(self, owned: Owned, problem: str) -> float:
        """Says why, and returns the seconds until it is tried again."""
        if owned.batch.status in BATCH_TERMINAL:
            log.parts_left(owned.batch, problem)
            return self._settings.pause * _TIDY_PAUSES
        await self._complain(owned, problem)
        return self._settings.pause

    async def _complain(self, owned: Owned, problem: str) -> None:
        if await self._store.complain(owned, problem):
            log.batch_waits(owned.batch, problem)

    async def _work(self, owned: Owned, turn: Turn) -> bool:
        """Whether all lines of a shard have ended."""
        batch = owned.batch
        source: Input = MissingInput(batch.input)
        pump: Pump | None = None
        jobs = BatchJobs(self._client, self._connection, batch)
        if owned.answered:
            await jobs.forget([jobs.id(number) for number in owned.answered])
            await self._store.forgot(owned)
        try:
            source = await self._open(owned)
            pump = Pump(self._store, jobs, owned, source, self._settings)
            return await self._pump(pump, owned, turn)
        except InputChanged as e:
            await self._store.fail(batch.id, BatchError("input_changed", str(e)))
            # Of jobs that were made since the last commit no other pump knows.
            await (pump or Pump(self._store, jobs, owned, source, self._settings)).give_up()
            return True
        finally:
            source.close()

    async def _open(self, owned: Owned) -> Input:
        batch = owned.batch
        try:
            source = await asyncio.to_thread(storage_of(batch.input).open, batch.input)
        except StorageError as e:
            # Rights may come back; a file that is gone does not come back as it was.
            if e.code == "not_found":
                raise InputChanged(str(e)) from e
            raise
        if source.version != batch.version:
            source.close()
            raise InputChanged(f"{batch.input} is not what it was when it was validated")
        return source

    async def _pump(self, pump: Pump, owned: Owned, turn: Turn) -> bool:
        """While the last jobs of a shard run, the next one is fed: their queue never runs dry in between."""
        following: asyncio.Task[bool] | None = None
        try:
            while True:
                done = await pump.run(turn.end)
                if pump.problem is not None:
                    await self._complain(owned, pump.problem)
                if done or turn.is_over():
                    return done
                if pump.is_fed and following is None and not owned.is_over:
                    following = asyncio.create_task(self._go_on(owned.batch.id, turn))
        except LeaseLost:
            await pump.retreat()
            raise
        finally:
            await pump.close()
            if following is not None:
                await following
