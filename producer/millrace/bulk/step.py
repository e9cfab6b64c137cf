"""One turn of work on one batch: taken, moved on as far as time allows, and left for the next."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from millrace.async_client import AsyncClient
from millrace.connection import Connection
from millrace_schemas import MillraceError, UnknownModel
from millrace_schemas.aio import end_tasks
from millrace_schemas.batch import (
    BATCH_TERMINAL,
    Batch,
    BatchError,
    BatchEvent,
    BatchStatus,
    BulkFile,
    Part,
    advance_batch,
)

from .errors import InputChanged, LeaseLost, StorageError
from .files import FileStore
from .jobs import BatchJobs
from .output import errors_url, output_url, parts_prefix
from .pump import Pump
from .settings import BulkSettings
from .storage import read_all, storage_of
from .store import BatchStore, Owned
from .validation import Finding, validate

#: Turns that one RQ job may have while nobody else waits.
_LONG_TURN = 6
_KEEP_EVERY = 1.0


def moved(batch: Batch, event: BatchEvent, now: float, **changes: Any) -> Batch:
    """The record after `event`, with the time of it. Raises IllegalTransition."""
    status = advance_batch(batch.status, event)
    return msgspec.structs.replace(batch, status=status, **{f"{status}_at": now}, **changes)


class Step:
    """What an RQ job does; `others_wait` tells whether another batch waits for this process."""

    def __init__(
        self,
        connection: Connection,
        client: AsyncClient,
        settings: BulkSettings,
        others_wait: Callable[[], bool] = lambda: False,
    ):
        self._connection, self._client, self._settings = connection, client, settings
        self._store, self._files = BatchStore(connection), FileStore(connection)
        self._others_wait = others_wait

    async def run(self, batch_id: str) -> None:
        """One turn; nothing when somebody else has the batch. Raises QueueUnavailable."""
        owned = await self._store.take(batch_id, self._settings.lease)
        if owned is None:
            return
        again: float | None = self._settings.pause
        try:
            again = await self._advance(owned)
        except LeaseLost:
            return
        except MillraceError as e:
            await self._store.complain(batch_id, str(e))
        await self._store.leave(owned, again)

    async def _advance(self, owned: Owned) -> float | None:
        """Seconds until somebody must go on; None: it has ended."""
        while owned.batch.status not in BATCH_TERMINAL:
            batch = owned.batch
            if owned.cancel is not None and batch.status in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
                await self._move(owned, BatchEvent.CANCEL)
            elif batch.status is BatchStatus.VALIDATING:
                await self._validate(owned)
            elif batch.status is BatchStatus.FINALIZING:
                await self._finish(owned, BatchEvent.EXPIRE if owned.progress.expired else BatchEvent.COMPLETE)
            elif batch.in_progress_at is None:
                # Cancelled before anybody knew what is in the file.
                await self._finish(owned, BatchEvent.CANCELLED)
            elif not await self._work(owned):
                return 0.0
        await asyncio.to_thread(storage_of(owned.batch.output).remove_under, parts_prefix(owned.batch))
        return None

    async def _move(self, owned: Owned, event: BatchEvent, **changes: Any) -> None:
        batch = moved(owned.batch, event, await self._store.now(), **changes)
        await self._store.commit(owned, batch, owned.progress)

    async def _validate(self, owned: Owned) -> None:
        try:
            finding, version, size = await self._look_through(owned)
        except (StorageError, InputChanged) as e:
            if isinstance(e, StorageError) and not e.lasting:
                raise
            code = e.code if isinstance(e, StorageError) else "input_changed"
            await self._fail(owned, BatchError(code, str(e)))
            return
        if owned.cancel is not None:
            return
        errors = finding.errors
        if not errors:
            try:
                await self._client._registry.info(finding.model)
            except UnknownModel as e:
                errors = (BatchError("model_not_found", str(e), 1, "body.model"),)
        if errors:
            await self._fail(owned, *errors)
            return
        await self._move(
            owned, BatchEvent.BEGIN, version=version, size=size, total=finding.total, endpoint=finding.endpoint,
            model=finding.model,
        )  # fmt: skip

    async def _look_through(self, owned: Owned) -> tuple[Finding, str, int]:
        """Reads the whole input in a thread, and makes sure that output can be written.

        What it finds counts only if the batch was not cancelled in the meantime.
        """
        batch = owned.batch
        probe = parts_prefix(batch) + "probe"
        await asyncio.to_thread(storage_of(batch.output).write, probe, b"")
        source = await asyncio.to_thread(storage_of(batch.input).open, batch.input)
        stop = threading.Event()

        def alive() -> None:
            if stop.is_set():
                raise LeaseLost(f"{batch.id}: it was taken away, or cancelled")

        async def keep() -> None:
            while True:
                await asyncio.sleep(_KEEP_EVERY)
                try:
                    await self._store.keep(owned, self._settings.lease)
                finally:
                    if owned.cancel is not None:
                        stop.set()

        keeping = asyncio.create_task(keep())
        keeping.add_done_callback(lambda _: stop.set())
        try:
            found = await asyncio.to_thread(validate, batch, source, self._settings.max_lines, alive)
        except LeaseLost:
            if owned.cancel is None:
                raise
            found = Finding(0, "", "", ())
        finally:
            await end_tasks(keeping)
            source.close()
        return found, source.version, source.size

    async def _work(self, owned: Owned) -> bool:
        """Whether all lines have ended, or the file has failed."""
        batch = owned.batch
        jobs = BatchJobs(self._client, self._connection, batch)
        try:
            source = await asyncio.to_thread(storage_of(batch.input).open, batch.input)
        except StorageError as e:
            if not e.lasting:
                raise
            await self._fail(owned, BatchError("input_changed", str(e)))
            return True
        try:
            if source.version != batch.version:
                raise InputChanged(f"{batch.input} is not what it was when it was validated")
            pump = Pump(self._store, jobs, owned, source, self._settings)
            if not await self._pump(pump):
                return False
        except InputChanged as e:
            await Pump(self._store, jobs, owned, source, self._settings).give_up()
            await self._fail(owned, BatchError("input_changed", str(e)))
            return True
        finally:
            source.close()
        if owned.cancel is None and batch.status is BatchStatus.IN_PROGRESS:
            await self._move(owned, BatchEvent.FINALIZE)
        elif batch.status is BatchStatus.CANCELLING:
            await self._finish(owned, BatchEvent.CANCELLED)
        return True

    async def _pump(self, pump: Pump) -> bool:
        for _ in range(_LONG_TURN):
            if await pump.run(time.monotonic() + self._settings.turn):
                return True
            if self._others_wait():
                break
        return False

    async def _fail(self, owned: Owned, *errors: BatchError) -> None:
        await self._finish(owned, BatchEvent.FAIL, errors=errors)

    async def _finish(self, owned: Owned, event: BatchEvent, **changes: Any) -> None:
        """Joins the parts into files, then writes the end. Doing it twice makes the same files."""
        batch = owned.batch
        output, errors = await self._store.parts(batch.id)
        ids = {"output_file_id": "", "error_file_id": ""}
        for name, parts, url in (
            ("output_file_id", output, output_url(batch)),
            ("error_file_id", errors, errors_url(batch)),
        ):
            if parts:
                ids[name] = _file_id(url)
                await self._join(owned, ids[name], parts, url)
        ended = moved(batch, event, await self._store.now(), **ids, **changes)
        await self._store.commit(owned, ended, owned.progress, ended=True)

    async def _join(self, owned: Owned, file_id: str, parts: list[Part], url: str) -> None:
        batch = owned.batch

        async def keep() -> None:
            while True:
                await self._store.keep(owned, self._settings.lease)
                await asyncio.sleep(_KEEP_EVERY)

        keeping = asyncio.create_task(keep())
        try:
            size = await asyncio.to_thread(storage_of(batch.output).join, url, _contents(batch, parts))
        finally:
            await end_tasks(keeping)
        await self._files.put(
            BulkFile(
                id=file_id, location=url, filename=url.rpartition("/")[2], size=size,
                created_at=await self._store.now(), purpose="batch_output", tenant=batch.tenant,
            )
        )  # fmt: skip


def _file_id(url: str) -> str:
    """The same whenever the end of a batch is written; its name has 128 random bits."""
    return "file-" + hashlib.blake2b(url.encode(), digest_size=16).hexdigest()


def _contents(batch: Batch, parts: list[Part]) -> Iterator[bytes]:
    return itertools.chain.from_iterable(read_all(parts_prefix(batch) + part.name) for part in parts)
