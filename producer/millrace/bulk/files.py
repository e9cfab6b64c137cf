"""Files that the HTTP API knows by id, in Redis; what is in them is in storage."""

from __future__ import annotations

import msgspec

from millrace.connection import Connection
from millrace_schemas import MillraceError, decode, encode
from millrace_schemas.batch import BulkFile
from millrace_schemas.keys import BULK_FILES_EXPIRING, bulk_file, bulk_files_of

#: Files that are read in one round trip.
_READ = 256


class FileNotFound(MillraceError, LookupError):
    """The id was never made here, or the file was deleted, or its time is over."""


class FileStore:
    def __init__(self, connection: Connection):
        self._connection = connection

    async def reserve(self, file: BulkFile, until: float) -> None:
        """Before its contents are written: nobody sees it, and it is swept `until` then unless it was `put`.

        `until` is Unix time. Raises QueueUnavailable.
        """
        hidden = msgspec.structs.replace(file, expires_at=file.created_at)
        await self._connection.run(
            ("ZADD", BULK_FILES_EXPIRING, until, file.id), ("SET", bulk_file(file.id), encode(hidden))
        )

    async def put(self, file: BulkFile) -> None:
        indexes = sorted({bulk_files_of(""), bulk_files_of(file.tenant)})
        expiring = (BULK_FILES_EXPIRING, file.expires_at, file.id)
        # A file that is not to stay may have no record, but not the other way round.
        before = () if file.expires_at is None else (("ZADD", *expiring),)
        after = (("ZREM", BULK_FILES_EXPIRING, file.id),) if file.expires_at is None else ()
        await self._connection.run(
            *before,
            ("SET", bulk_file(file.id), encode(file)),
            *(("ZADD", index, file.created_at, file.id) for index in indexes),
            *after,
        )

    async def get(self, file_id: str, tenant: str | None = None) -> BulkFile:
        """Raises FileNotFound, also when it is another tenant's."""
        (data,) = await self._connection.run(("GET", bulk_file(file_id)))
        found = None if data is None else decode(data, BulkFile)
        if found is None or (tenant is not None and found.tenant != tenant) or _is_over(found, await self._now()):
            raise FileNotFound(f"there is no file {file_id}")
        return found

    async def page(
        self,
        tenant: str = "",
        *,
        count: int = 100,
        after: str | None = None,
        purpose: str | None = None,
        newest_first: bool = True,
    ) -> list[BulkFile]:
        """At most `count` files behind the one that is called `after`; of tenant "" those of all.

        Raises FileNotFound when `after` is none of them.
        """
        index, start = bulk_files_of(tenant), 0
        rank, part = ("ZREVRANK", "ZREVRANGE") if newest_first else ("ZRANK", "ZRANGE")
        if after is not None:
            (found,) = await self._connection.run((rank, index, after))
            if found is None:
                raise FileNotFound(f"there is no file {after}")
            start = found + 1
        files: list[BulkFile] = []
        now = await self._now()
        while len(files) < count:
            most = min(_READ, count - len(files)) if purpose is None else _READ
            (ids,) = await self._connection.run((part, index, start, start + most - 1))
            if not ids:
                break
            start += len(ids)
            (records,) = await self._connection.run(("MGET", *(bulk_file(name.decode()) for name in ids)))
            there = [decode(data, BulkFile) for data in records if data is not None]
            files += [file for file in there if not _is_over(file, now) and purpose in (None, file.purpose)]
        return files[:count]

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
