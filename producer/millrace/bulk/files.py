"""Files that the HTTP API knows by id, in Redis; what is in them is in storage."""

from __future__ import annotations

from millrace.connection import Connection
from millrace_schemas import MillraceError, decode, encode
from millrace_schemas.batch import BulkFile
from millrace_schemas.keys import BULK_FILES_EXPIRING, bulk_file, bulk_files_of


class FileNotFound(MillraceError, LookupError):
    """The id was never made here, or the file was deleted, or its time is over."""


class FileStore:
    def __init__(self, connection: Connection):
        self._connection = connection

    async def check(self) -> None:
        """Raises QueueUnavailable when nothing could be put now."""
        await self._connection.run(("TIME",))

    async def put(self, file: BulkFile) -> None:
        indexes = sorted({bulk_files_of(""), bulk_files_of(file.tenant)})
        ending = () if file.expires_at is None else (("ZADD", BULK_FILES_EXPIRING, file.expires_at, file.id),)
        await self._connection.run(
            # First: a file that is not to stay may have no record, but not the other way round.
            *ending,
            ("SET", bulk_file(file.id), encode(file)),
            *(("ZADD", index, file.created_at, file.id) for index in indexes),
        )

    async def get(self, file_id: str, tenant: str | None = None) -> BulkFile:
        """Raises FileNotFound, also when it is another tenant's."""
        (data,) = await self._connection.run(("GET", bulk_file(file_id)))
        found = None if data is None else decode(data, BulkFile)
        if found is None or (tenant is not None and found.tenant != tenant) or _is_over(found, await self._now()):
            raise FileNotFound(f"there is no file {file_id}")
        return found

    async def all(self, tenant: str = "", *, newest_first: bool = True) -> list[BulkFile]:
        """Of tenant "" those of all."""
        command = "ZREVRANGE" if newest_first else "ZRANGE"
        (ids,) = await self._connection.run((command, bulk_files_of(tenant), 0, -1))
        if not ids:
            return []
        (found,) = await self._connection.run(("MGET", *(bulk_file(name.decode()) for name in ids)))
        files = [decode(data, BulkFile) for data in found if data is not None]
        now = await self._now()
        return [file for file in files if not _is_over(file, now)]

    async def delete(self, file: BulkFile) -> None:
        indexes = sorted({bulk_files_of(""), bulk_files_of(file.tenant)})
        await self._connection.run(
            *(("ZREM", index, file.id) for index in indexes),
            ("DEL", bulk_file(file.id)),
            ("ZREM", BULK_FILES_EXPIRING, file.id),
        )

    async def _now(self) -> float:
        return await self._connection.now()


def _is_over(file: BulkFile, now: float) -> bool:
    return file.expires_at is not None and file.expires_at <= now
