"""Both ends of a batch: its validation, and the joining of parts into files."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Iterator
from typing import Any

import msgspec

from millrace.async_client import AsyncClient
from millrace.connection import Connection
from millrace_schemas import UnknownModel
from millrace_schemas.batch import Batch, BatchError, BatchEvent, BatchStatus, BulkFile, Part, advance_batch

from . import log
from .announcing import announce
from .errors import InputChanged, LeaseLost, StorageError
from .expiry import output_expires_at
from .files import FileStore
from .jobs import BatchJobs
from .output import errors_url, output_url, parts_prefix
from .settings import BulkSettings
from .storage import read_all, storage_of
from .store import BatchStore, Owned
from .validation import Finding, validate

#: What the log says of moves.
_TOLD = {BatchEvent.BEGIN: log.batch_began, BatchEvent.CANCEL: log.batch_cancelled}


def moved(batch: Batch, event: BatchEvent, now: float, **changes: Any) -> Batch:
    """The record after `event`, with the time of it. Raises IllegalTransition."""
    status = advance_batch(batch.status, event)
    return msgspec.structs.replace(batch, status=status, **{f"{status}_at": now}, **changes)


class Whole:
    """What is done by the owner of a whole batch."""

    def __init__(self, store: BatchStore, client: AsyncClient, connection: Connection, settings: BulkSettings):
        self._store, self._client, self._settings = store, client, settings
        self._connection = connection
        self._files = FileStore(connection)

    async def advance(self, owned: Owned) -> None:
        """Moves a batch on until its shards are to be worked on, or it has ended.

        Raises LeaseLost, StorageError, QueueUnavailable.
        """
        if owned.batch.status is BatchStatus.VALIDATING and owned.cancel is None and await self._validate(owned):
            return
        await self._end(owned)
        await asyncio.to_thread(storage_of(owned.batch.output).remove_under, parts_prefix(owned.batch))

    async def _end(self, owned: Owned) -> None:
        """From any status to the end that belongs to it; nothing at the end."""
        batch = owned.batch
        if owned.failure is not None and batch.status in (BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING):
            await self._finish(owned, BatchEvent.FAIL, errors=(owned.failure,))
        elif batch.status in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
            if owned.cancel is None:
                await self._move(owned, BatchEvent.FINALIZE)
            if owned.cancel is not None:
                await self._move(owned, BatchEvent.CANCEL, at=owned.cancel)
        if owned.batch.status is BatchStatus.CANCELLING:
            await self._finish(owned, BatchEvent.CANCELLED)
        elif owned.batch.status is BatchStatus.FINALIZING:
            expired = (await self._store.view(batch.id)).progress.expired
            await self._finish(owned, BatchEvent.EXPIRE if expired else BatchEvent.COMPLETE)

    async def _move(self, owned: Owned, event: BatchEvent, at: float | None = None, **changes: Any) -> bool:
        """False: instead of being finalized it is to be cancelled, which everybody was told already."""
        batch = moved(owned.batch, event, await self._store.now() if at is None else at, **changes)
        moved_on = await self._store.move(
            owned, batch, open_shards=event is BatchEvent.BEGIN, unless_cancelled=event is BatchEvent.FINALIZE
        )
        if moved_on and event in _TOLD:
            _TOLD[event](batch)
        return moved_on

    async def _validate(self, owned: Owned) -> bool:
        """Whether its shards are to be worked on; otherwise it has failed, or was cancelled."""
        try:
            finding, version, size = await self._look_through(owned)
        except (StorageError, InputChanged) as e:
            if isinstance(e, StorageError) and not e.lasting and await self._store.now() < owned.batch.expires_at:
                raise
            code = e.code if isinstance(e, StorageError) else "input_changed"
            await self._finish(owned, BatchEvent.FAIL, errors=(BatchError(code, str(e)),))
            return False
        if owned.cancel is not None:
            return False
        errors = finding.errors
        if not errors:
            try:
                await self._client._registry.info(finding.model)
            except UnknownModel as e:
                errors = (BatchError("model_not_found", str(e), 1, "body.model"),)
        if errors:
            await self._finish(owned, BatchEvent.FAIL, errors=errors)
            return False
        await self._move(
            owned, BatchEvent.BEGIN, version=version, size=size, total=finding.total, endpoint=finding.endpoint,
            model=finding.model, shards=finding.shards,
        )  # fmt: skip
        return True

    async def _look_through(self, owned: Owned) -> tuple[Finding, str, int]:
        """Reads the whole input in a thread, and makes sure that output can be written.

        What it finds counts only if the batch was not cancelled in the meantime.
        """
        batch = owned.batch
        probe = parts_prefix(batch) + "probe"
        try:
            await asyncio.to_thread(storage_of(batch.output).write, probe, b"")
        except StorageError as e:
            raise StorageError(f"the output cannot be written: {e}", code=e.code, lasting=e.lasting) from e
        source = await asyncio.to_thread(storage_of(batch.input).open, batch.input)

        def alive(share: float) -> None:
            owned.checked = share
            if owned.is_lost or owned.cancel is not None:
                raise LeaseLost(f"{batch.id}: it was taken away, or cancelled")

        try:
            found = await asyncio.to_thread(validate, batch, source, self._settings, alive)
        except LeaseLost:
            if owned.cancel is None:
                raise
            found = Finding(0, "", "", ())
        finally:
            owned.checked = None
            source.close()
        return found, source.version, source.size

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
        if answered := await self._store.answered(batch):
            jobs = BatchJobs(self._client, self._connection, batch)
            await jobs.forget([jobs.id(number) for number in answered])
        now = await self._store.now()
        ended = moved(batch, event, now, **ids, **changes)
        await announce(self._connection, ended, ended.status, now)
        await self._store.move(owned, ended, ended=True)
        log.batch_ended(ended, (await self._store.view(batch.id)).progress)

    async def _join(self, owned: Owned, file_id: str, parts: list[Part], url: str) -> None:
        batch = owned.batch
        size = await asyncio.to_thread(storage_of(batch.output).join, url, _contents(batch, parts))
        now = await self._store.now()
        await self._files.put(
            BulkFile(
                id=file_id, location=url, filename=url.rpartition("/")[2], size=size, created_at=now,
                purpose="batch_output", expires_at=output_expires_at(batch, now), tenant=batch.tenant,
            )
        )  # fmt: skip


def _file_id(url: str) -> str:
    """The same whenever the end of a batch is written; its name has 128 random bits."""
    return "file-" + hashlib.blake2b(url.encode(), digest_size=16).hexdigest()


def _contents(batch: Batch, parts: list[Part]) -> Iterator[bytes]:
    return itertools.chain.from_iterable(read_all(parts_prefix(batch) + part.name) for part in parts)
