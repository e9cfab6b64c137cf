"""Files whose time is over go: the object first, its record last.

Nobody sees a file's record any more once its time is over, so whoever finds one may end what another began: a death in
between leaves a record without an object, and the next sweep removes that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from millrace.connection import Connection
from millrace_schemas import DecodeError, decode
from millrace_schemas.batch import Batch, BulkFile
from millrace_schemas.keys import BATCHES_DUE, BULK_FILES_EXPIRING, batch_key, bulk_file

from .errors import StorageError
from .files import FileStore
from .output import errors_url, output_url
from .storage import storage_of

_log = logging.getLogger(__name__)

#: Seconds that a file stays after its time: whoever found it before has as long to make a batch of it.
_GRACE = 60.0
#: Seconds until a file that could not go is looked at again.
_PAUSE = 300.0
_CHUNK = 256


async def sweep_files(connection: Connection, now: float, most: int = 100) -> int:
    """Deletes at most `most` files whose time was over before `now`, Unix seconds by the clock of Redis, and returns
    how many. What an unfinished batch reads or writes stays until it has ended. Any number may run at once.

    Raises QueueUnavailable, and DecodeError when it cannot read what some batch uses: then all files stay.
    """
    (due,) = await connection.run(("ZRANGEBYSCORE", BULK_FILES_EXPIRING, "-inf", now - _GRACE, "LIMIT", 0, most))
    if not due:
        return 0
    ids = [name.decode() for name in due]
    (records,) = await connection.run(("MGET", *(bulk_file(file_id) for file_id in ids)))
    used = await _used(connection)
    gone = 0
    for file_id, record in zip(ids, records, strict=True):
        if record is None:
            await connection.run(("ZREM", BULK_FILES_EXPIRING, file_id))
            continue
        file = _read(file_id, record)
        if file is None or file.id in used or file.location in used or not await _remove(file):
            # XX: not if somebody deletes it meanwhile.
            await connection.run(("ZADD", BULK_FILES_EXPIRING, "XX", now - _GRACE + _PAUSE, file_id))
            continue
        await FileStore(connection).delete(file)
        gone += 1
    return gone


def sweep(redis_url: str, most: int) -> int:
    """One `sweep_files` of a process that has no loop."""

    async def run() -> int:
        connection = Connection(redis_url)
        try:
            return await sweep_files(connection, await connection.now(), most)
        finally:
            await connection.close()

    return asyncio.run(run())


def _read(file_id: str, record: bytes) -> BulkFile | None:
    try:
        return decode(record, BulkFile)
    except DecodeError as e:
        _log.warning("%s has expired and stays, as another release of Millrace wrote it: %s", file_id, e)
        return None


async def _remove(file: BulkFile) -> bool:
    try:
        await asyncio.to_thread(storage_of(file.location).remove, file.location)
    except StorageError as e:
        _log.warning("%s has expired and cannot be deleted: %s", file.id, e)
        return False
    return True


async def _used(connection: Connection) -> set[str]:
    """Ids and places of files of batches without an end."""
    (ids,) = await connection.run(("ZRANGE", BATCHES_DUE, 0, -1))
    used: set[str] = set()
    for at in range(0, len(ids), _CHUNK):
        for batch in await _batches(connection, ids[at : at + _CHUNK]):
            used |= {batch.input_file_id, batch.input, output_url(batch), errors_url(batch)}
    return used


async def _batches(connection: Connection, ids: Sequence[bytes]) -> list[Batch]:
    records = await connection.run(*(("HGET", batch_key(name.decode()), "record") for name in ids))
    return [decode(record, Batch) for record in records if record is not None]
