"""Batches in Redis: made, found, owned by one worker at a time, and moved on by nobody but their owner."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from millrace.connection import Connection
from millrace_schemas import decode, encode
from millrace_schemas.batch import Batch, BatchProgress, Part
from millrace_schemas.keys import BATCHES_DUE, batch_key, batch_parts, batches_of

from .errors import BatchNotFound, LeaseLost

#: Seconds that a batch is remembered after its end; OpenAI keeps output files as long.
KEEP = 30 * 86_400
_LISTED = 100


@dataclass(frozen=True, slots=True)
class View:
    """A batch as others see it."""

    batch: Batch
    progress: BatchProgress
    #: Unix time at which somebody asked for its end.
    cancel: float | None
    #: Why it does not move, in words; None: it does, or nobody knows.
    problem: str | None


@dataclass(slots=True)
class Owned:
    """A batch as its owner knows it."""

    token: str
    batch: Batch
    progress: BatchProgress
    revision: int
    cancel: float | None


class BatchStore:
    def __init__(self, connection: Connection):
        self._connection = connection

    async def now(self) -> float:
        return await self._connection.now()

    async def create(self, batch: Batch) -> None:
        """Makes the batch due; one that is there already stays as it is. Raises QueueUnavailable."""
        indexes = {batches_of(""), batches_of(batch.tenant)}
        (made,) = await self._connection.run(("HSETNX", batch_key(batch.id), "record", encode(batch)))
        if made:
            await self._connection.run(
                *(("ZADD", index, batch.created_at, batch.id) for index in sorted(indexes)),
                ("ZADD", BATCHES_DUE, batch.created_at, batch.id),
            )

    async def view(self, batch_id: str, tenant: str | None = None) -> View:
        """Raises BatchNotFound, also when it is another tenant's."""
        found = (await self._views([batch_id]))[0]
        if found is None or (tenant is not None and found.batch.tenant != tenant):
            raise BatchNotFound(f"there is no batch {batch_id}, or its time to live is over")
        return found

    async def newest(self, tenant: str = "", count: int = 20, after: str | None = None) -> list[View]:
        """The newest `count` behind `after`, newest first; of tenant "" those of all."""
        index, start = batches_of(tenant), 0
        if after is not None:
            (rank,) = await self._connection.run(("ZREVRANK", index, after))
            if rank is None:
                raise BatchNotFound(f"there is no batch {after}, or its time to live is over")
            start = rank + 1
        views: list[View] = []
        while len(views) < count:
            (ids,) = await self._connection.run(("ZREVRANGE", index, start, start + _LISTED - 1))
            if not ids:
                break
            start += len(ids)
            names = [found.decode() for found in ids]
            found = await self._views(names)
            gone = [name for name, view in zip(names, found, strict=True) if view is None]
            if gone:
                await self._connection.run(("ZREM", index, *gone))
                start -= len(gone)
            views += [view for view in found if view is not None]
        return views[:count]

    async def cancel(self, batch_id: str) -> bool:
        """Whether it will be cancelled; False when it has ended or is not there."""
        return bool(await self._connection.script("batch_cancel", [batch_key(batch_id), BATCHES_DUE], [batch_id]))

    async def resume(self, batch_id: str) -> bool:
        """Makes a batch without an end due now; False when it has ended or is not there."""
        (there,) = await self._connection.run(("ZSCORE", BATCHES_DUE, batch_id))
        if there is not None:
            await self._connection.run(("ZADD", BATCHES_DUE, "XX", await self.now(), batch_id))
        return there is not None

    async def due(self, most: int, hold: float) -> list[str]:
        """Batches that somebody must see to; nobody else gets them for `hold` seconds."""
        ids = await self._connection.script("batch_due", [BATCHES_DUE], [most, hold])
        return [found.decode() for found in ids]

    async def take(self, batch_id: str, lease: float) -> Owned | None:
        """None when there is no such batch, or when somebody else has it."""
        token = secrets.token_hex(8)
        reply = await self._connection.script(
            "batch_take", [batch_key(batch_id), BATCHES_DUE], [batch_id, token, lease, "take"]
        )
        if reply[0] == 0:
            return None
        _, record, progress, revision, cancel = reply
        known = decode(progress, BatchProgress) if progress else BatchProgress()
        return Owned(token, decode(record, Batch), known, int(revision), float(cancel) if cancel else None)

    async def keep(self, owned: Owned, lease: float) -> None:
        """Renews the ownership and learns of a cancellation. Raises LeaseLost."""
        batch_id = owned.batch.id
        reply = await self._connection.script(
            "batch_take", [batch_key(batch_id), BATCHES_DUE], [batch_id, owned.token, lease, "keep"]
        )
        if reply[0] == 0:
            raise LeaseLost(f"{batch_id}: somebody else works on it")
        owned.cancel = float(reply[4]) if reply[4] else None

    async def commit(
        self,
        owned: Owned,
        batch: Batch,
        progress: BatchProgress,
        output: Part | None = None,
        errors: Part | None = None,
        *,
        ended: bool = False,
    ) -> None:
        """Writes all of it, or nothing and raises LeaseLost."""
        parts = [b"" if part is None else encode(part) for part in (output, errors)]
        done = await self._connection.script(
            "batch_commit",
            [batch_key(batch.id), *batch_parts(batch.id)],
            [owned.token, owned.revision, encode(batch), encode(progress), *parts, KEEP if ended else 0],
        )
        if not done:
            raise LeaseLost(f"{batch.id}: somebody else works on it")
        owned.batch, owned.progress, owned.revision = batch, progress, owned.revision + 1

    async def leave(self, owned: Owned, again: float | None) -> None:
        """`again`: seconds until somebody must see to it; None: nobody must."""
        await self._connection.script(
            "batch_leave",
            [batch_key(owned.batch.id), BATCHES_DUE],
            [owned.batch.id, owned.token, "" if again is None else again],
        )

    async def complain(self, batch_id: str, problem: str) -> None:
        """Says why a batch does not move; the next commit takes it back."""
        key = batch_key(batch_id)
        (there,) = await self._connection.run(("HEXISTS", key, "record"))
        if there:
            await self._connection.run(("HSET", key, "problem", problem[:1000]))

    async def parts(self, batch_id: str) -> tuple[list[Part], list[Part]]:
        """Of the output and of the error file, in order."""
        output, errors = await self._connection.run(*(("LRANGE", key, 0, -1) for key in batch_parts(batch_id)))
        return [decode(part, Part) for part in output], [decode(part, Part) for part in errors]

    async def _views(self, ids: Sequence[str]) -> list[View | None]:
        fields = ("record", "progress", "cancel", "problem")
        replies = await self._connection.run(*(("HMGET", batch_key(batch_id), *fields) for batch_id in ids))
        return [None if reply[0] is None else _view(*reply) for reply in replies]


def _view(record: bytes, progress: bytes | None, cancel: bytes | None, problem: bytes | None) -> View:
    return View(
        decode(record, Batch),
        decode(progress, BatchProgress) if progress else BatchProgress(),
        float(cancel) if cancel else None,
        problem.decode(errors="replace") if problem else None,
    )
