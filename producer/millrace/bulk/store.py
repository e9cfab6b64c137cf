"""Batches in Redis: made, found, owned by one worker at a time, and moved on by nobody but their owner."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from millrace.connection import Connection
from millrace_schemas import decode, encode
from millrace_schemas.batch import Batch, BatchError, BatchProgress, Part, ShardProgress
from millrace_schemas.keys import BATCHES_DUE, batch_key, batch_parts, batches_of

from .errors import BatchNotFound, LeaseLost

#: Seconds that a batch is remembered after its end; OpenAI keeps output files as long.
KEEP = 30 * 86_400
#: What a batch counts, as fields of its hash.
COUNTS = ("completed", "failed", "prompt_tokens", "completion_tokens", "cached_tokens")
_VIEWED = ("record", "cancel", "problem", "checked", *COUNTS, "expired")
_LISTED = 100
#: Seconds since a batch was due after which no bulk worker runs: one that does looks several times a second.
_NOBODY_AFTER = 15.0
_NOBODY = "nobody works on it: no `millrace bulk` runs on this Redis"
_NUMBERS = msgspec.msgpack.Decoder(tuple[int, ...])
_NUMBERS_TO = msgspec.msgpack.Encoder()


@dataclass(frozen=True, slots=True)
class View:
    """A batch as others see it."""

    batch: Batch
    progress: BatchProgress
    #: Unix time at which somebody asked for its end.
    cancel: float | None
    #: Why it does not move, in words; None: it does, or nobody knows.
    problem: str | None
    #: When it was asked for, Unix time by the clock of Redis: it was so then, or later. Nothing of what is seen.
    at: float = field(compare=False)


@dataclass(slots=True)
class Owned:
    """A batch, or a shard of it, as its owner knows it."""

    token: str
    batch: Batch
    #: None: the batch as a whole, while none of its shards is open.
    shard: int | None
    progress: ShardProgress
    revision: int
    cancel: float | None
    #: Why the batch cannot be worked off, as somebody else found.
    failure: BatchError | None
    #: Lines whose answers are durable, and whose jobs may still be there.
    answered: tuple[int, ...] = ()
    #: Share of the input that its validation has read, 0 to 1, for the next renewal; None: it is not validated.
    checked: float | None = None
    #: Somebody else has it by now.
    is_lost: bool = False

    @property
    def name(self) -> str:
        """What it is called in the batch's hash."""
        return "" if self.shard is None else f":{self.shard}"

    @property
    def is_over(self) -> bool:
        """Whether no more of its lines are to become jobs."""
        return self.cancel is not None or self.failure is not None


class BatchStore:
    def __init__(self, connection: Connection):
        self._connection = connection

    async def now(self) -> float:
        return await self._connection.now()

    async def create(self, batch: Batch) -> None:
        """Makes the batch due; one that is there already stays as it is. Raises QueueUnavailable."""
        indexes = sorted({batches_of(""), batches_of(batch.tenant)})
        await self._connection.script(
            "batch_create",
            [batch_key(batch.id), BATCHES_DUE, *indexes],
            [batch.id, encode(batch), batch.created_at, 2 * KEEP],
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
            most = min(_LISTED, count - len(views))
            (ids,) = await self._connection.run(("ZREVRANGE", index, start, start + most - 1))
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

    async def count_unfinished(self) -> int:
        (count,) = await self._connection.run(("ZCARD", BATCHES_DUE))
        return int(count)

    async def unfinished(self, most: int) -> list[View]:
        """At most so many batches without an end, in no order."""
        (ids,) = await self._connection.run(("ZRANGE", BATCHES_DUE, 0, most - 1))
        views = await self._views([found.decode() for found in ids]) if ids else []
        return [view for view in views if view is not None]

    async def cancel(self, batch_id: str) -> bool:
        """Whether it will be cancelled; False when it has ended or is not there."""
        return bool(await self._connection.script("batch_cancel", [batch_key(batch_id), BATCHES_DUE], [batch_id]))

    async def resume(self, batch_id: str) -> bool:
        """Makes a batch without an end due now; False when it has ended or is not there."""
        return bool(await self._connection.script("batch_resume", [batch_key(batch_id), BATCHES_DUE], [batch_id]))

    async def due(self, most: int, hold: float) -> list[str]:
        """Batches that somebody must see to; nobody else gets them for `hold` seconds."""
        ids = await self._connection.script("batch_due", [BATCHES_DUE], [most, hold])
        return [found.decode() for found in ids]

    async def take(self, batch_id: str, lease: float) -> Owned | None:
        """What is to be had of a batch; None when there is no such batch, or when others have all of it."""
        token = secrets.token_hex(8)
        reply = await self._connection.script(
            "batch_take", [batch_key(batch_id), BATCHES_DUE], [batch_id, token, lease]
        )
        if reply[0] == 0:
            return None
        _, shard, record, progress, revision, cancel, failure, answered = reply
        return Owned(
            token,
            decode(record, Batch),
            int(shard) if shard else None,
            decode(progress, ShardProgress) if progress else ShardProgress(),
            int(revision),
            float(cancel) if cancel else None,
            decode(failure, BatchError) if failure else None,
            _NUMBERS.decode(answered) if answered else (),
        )

    async def keep(self, owned: Owned, lease: float) -> None:
        """Renews the ownership, and learns of a cancellation and of failures. Raises LeaseLost."""
        batch_id, checked = owned.batch.id, owned.checked
        reply = await self._connection.script(
            "batch_keep",
            [batch_key(batch_id), BATCHES_DUE],
            [batch_id, owned.token, lease, owned.name, "" if checked is None else f"{checked:.4f}"],
        )
        if reply[0] == 0:
            raise _lost(owned)
        owned.cancel = float(reply[1]) if reply[1] else None
        owned.failure = decode(reply[2], BatchError) if reply[2] else None

    async def move(
        self,
        owned: Owned,
        batch: Batch,
        *,
        open_shards: bool = False,
        ended: bool = False,
        unless_cancelled: bool = False,
    ) -> bool:
        """Writes the record, of a batch that is owned as a whole, or nothing and raises LeaseLost.

        False: it was to be written only `unless_cancelled`, and somebody has asked for the batch's end.
        """
        shards = len(batch.shards) if open_shards else 0
        done, cancel = await self._connection.script(
            "batch_move",
            [batch_key(batch.id), *batch_parts(batch.id)],
            [owned.token, owned.revision, encode(batch), shards, KEEP if ended else 0, int(unless_cancelled)],
        )
        if not done:
            raise _lost(owned)
        if done == 2:
            owned.cancel = float(cancel)
            return False
        owned.batch, owned.revision = batch, owned.revision + 1
        return True

    async def commit(
        self,
        owned: Owned,
        progress: ShardProgress,
        counts: Mapping[str, int],
        output: Part | None = None,
        errors: Part | None = None,
        answered: Sequence[int] = (),
    ) -> None:
        """Writes all of it, of an owned shard, or nothing and raises LeaseLost. `counts` are added to the batch's.

        `answered`: lines whose jobs are of no use from then on; see `forgot`.
        """
        batch_id = owned.batch.id
        parts = [b"" if part is None else encode(part) for part in (output, errors)]
        added = [value for pair in counts.items() if pair[1] for value in pair]
        done = await self._connection.script(
            "batch_commit",
            [batch_key(batch_id), *batch_parts(batch_id)],
            [
                *(owned.token, owned.shard, owned.revision, encode(progress), *parts),
                *(int(progress.done), int(progress.expired), _NUMBERS_TO.encode(answered) if answered else b"", *added),
            ],
        )
        if not done:
            raise _lost(owned)
        owned.progress, owned.revision = progress, owned.revision + 1

    async def forgot(self, owned: Owned) -> None:
        """The jobs of all lines that were `answered` are gone."""
        await self._connection.run(("HDEL", batch_key(owned.batch.id), f"answered{owned.name}"))

    async def answered(self, batch: Batch) -> list[int]:
        """Lines of all shards whose jobs may be left, as somebody died before they were gone."""
        if not batch.shards:
            return []
        names = [f"answered:{shard}" for shard in range(len(batch.shards))]
        (found,) = await self._connection.run(("HMGET", batch_key(batch.id), *names))
        return [number for data in found if data for number in _NUMBERS.decode(data)]

    async def progress_of(self, owned: Owned) -> ShardProgress:
        """How far a shard has come by now, whoever has it; of one that is done nothing more is known."""
        names = (f"done{owned.name}", f"progress{owned.name}")
        ((done, data),) = await self._connection.run(("HMGET", batch_key(owned.batch.id), *names))
        if done:
            return ShardProgress(done=True)
        return decode(data, ShardProgress) if data else ShardProgress()

    async def fail(self, batch_id: str, error: BatchError) -> None:
        """Lets all shards of a batch end, for the first such reason."""
        await self._connection.script("batch_fail", [batch_key(batch_id)], [encode(error)])

    async def leave(self, owned: Owned, again: float | None) -> None:
        """`again`: seconds until somebody must see to it; None: nobody must, as the batch is at its end."""
        await self._connection.script(
            "batch_leave",
            [batch_key(owned.batch.id), BATCHES_DUE],
            [owned.batch.id, owned.token, owned.name, "" if again is None else again],
        )

    async def complain(self, owned: Owned, problem: str) -> bool:
        """Says why a batch does not move; the next commit takes it back. False: that was known, or others have it."""
        key, problem = batch_key(owned.batch.id), problem[:1000]
        ((owner, known),) = await self._connection.run(("HMGET", key, f"owner{owned.name}", "problem"))
        if owner != owned.token.encode() or known == problem.encode():
            return False
        await self._connection.run(("HSET", key, "problem", problem))
        return True

    async def parts(self, batch_id: str) -> tuple[list[Part], list[Part]]:
        """Of the output and of the error file, in order."""
        output, errors = await self._connection.run(*(("LRANGE", key, 0, -1) for key in batch_parts(batch_id)))
        return [decode(part, Part) for part in output], [decode(part, Part) for part in errors]

    async def _views(self, ids: Sequence[str]) -> list[View | None]:
        if not ids:
            return []
        at = await self.now()
        looks = (("HMGET", batch_key(batch_id), *_VIEWED) for batch_id in ids)
        due, *replies = await self._connection.run(("ZMSCORE", BATCHES_DUE, *ids), *looks)
        late = at - _NOBODY_AFTER
        return [
            None if reply[0] is None else _view(at, *reply, is_unattended=score is not None and float(score) < late)
            for score, reply in zip(due, replies, strict=True)
        ]


def _view(
    at: float,
    record: bytes,
    cancel: bytes | None,
    problem: bytes | None,
    checked: bytes | None,
    *counts: bytes | None,
    is_unattended: bool,
) -> View:
    named = {name: int(count) for name, count in zip(COUNTS, counts, strict=False) if count}
    return View(
        decode(record, Batch),
        BatchProgress(checked=float(checked or 0), expired=bool(counts[-1]), **named),
        float(cancel) if cancel else None,
        problem.decode(errors="replace") if problem else _NOBODY if is_unattended else None,
        at,
    )


def _lost(owned: Owned) -> LeaseLost:
    owned.is_lost = True
    return LeaseLost(f"{owned.batch.id}: somebody else works on it")
