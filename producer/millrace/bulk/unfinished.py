"""The batches without an end, as numbers: whether they come along, and whether anybody works on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from millrace.connection import Connection
from millrace_schemas import DecodeError, decode
from millrace_schemas.batch import BATCH_TERMINAL, BatchStatus
from millrace_schemas.keys import BATCHES_DUE, batch_key

#: Seconds since a batch was due after which nobody works on batches: the longest that one waits to be handed out by a
#: bulk worker that runs, one of 10,000 included, is well below.
UNATTENDED = 60.0
#: Shares of a batch's window: what must be over before its pace says anything, as batches take turns; and what must be
#: left for one that is not done.
_PACE_AFTER, _LAST = 0.25, 0.1
#: Batches that are read in one round trip. Between two of them the event loop has others to see to.
_CHUNK = 250
_READ = ("record", "cancel", "problem", "completed", "failed")


class _Record(msgspec.Struct, frozen=True):
    """What is needed of a batch's record, whatever else stands there."""

    created_at: float
    expires_at: float
    status: BatchStatus = BatchStatus.VALIDATING
    total: int = 0
    in_progress_at: float | None = None


@dataclass(slots=True)
class Unfinished:
    """Batches that have not ended. `total`, `completed` and `failed` count their lines."""

    by_status: Counter[BatchStatus] = field(
        default_factory=lambda: Counter({status: 0 for status in BatchStatus if status not in BATCH_TERMINAL})
    )
    total: int = 0
    completed: int = 0
    failed: int = 0
    #: Those with a problem.
    waiting: int = 0
    #: Those that are not done by the end of their window, as things are.
    expiring: int = 0
    #: Those that were due more than UNATTENDED seconds ago.
    unattended: int = 0


async def read_unfinished(connection: Connection) -> Unfinished:
    """Reads what is due and nothing that has ended: some 5 commands a batch's worth of work for Redis, no scan.

    Raises QueueUnavailable.
    """
    now = await connection.now()
    ids, late = await connection.run(
        ("ZRANGE", BATCHES_DUE, 0, -1), ("ZCOUNT", BATCHES_DUE, "-inf", f"{now - UNATTENDED:.6f}")
    )
    found = Unfinished(unattended=late)
    for at in range(0, len(ids), _CHUNK):
        commands = [("HMGET", batch_key(batch_id.decode()), *_READ) for batch_id in ids[at : at + _CHUNK]]
        for reply in await connection.run(*commands):
            if reply[0] is not None:
                _count(found, dict(zip(_READ, reply, strict=True)), now)
    return found


def is_expiring(record: _Record, ended: int, now: float) -> bool:
    """Whether a batch with `ended` lines behind it will not be done in its window, by the pace that it has had so far.

    In the first quarter of a window nothing is said; in its last tenth every batch counts that is not done.
    """
    if record.status not in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
        return False
    window = record.expires_at - record.created_at
    if now > record.expires_at - _LAST * window:
        return True
    began = record.in_progress_at
    if began is None or now - record.created_at < _PACE_AFTER * window:
        return False
    # (total - ended) / pace > what is left, without a division by the pace, which may be nothing.
    return (record.total - ended) * (now - began) > (record.expires_at - now) * ended


def _count(found: Unfinished, fields: Mapping[str, bytes | None], now: float) -> None:
    try:
        record = decode(fields["record"] or b"", _Record)
    except DecodeError:
        # Of a newer release, for its own gateways to count.
        return
    if record.status in BATCH_TERMINAL:
        return
    completed, failed = int(fields["completed"] or 0), int(fields["failed"] or 0)
    cancelled = fields["cancel"] is not None
    status = BatchStatus.CANCELLING if cancelled and record.status is not BatchStatus.FINALIZING else record.status
    found.by_status[status] += 1
    found.total += record.total
    found.completed += completed
    found.failed += failed
    found.waiting += fields["problem"] is not None
    found.expiring += not cancelled and is_expiring(record, completed + failed, now)
